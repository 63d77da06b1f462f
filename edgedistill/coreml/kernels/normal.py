"""Normalisation over channels, rows or neighbours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgedistill.coreml.values import Arguments, Result


def _channels(vector: Tensor | None, x: Tensor) -> Tensor | None:
    """A vector [C], shaped to meet axis 1 of `x`."""
    return None if vector is None else vector.reshape(1, -1, *[1] * (x.ndim - 2))


def _affine(y: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


def _layer_norm(a: Arguments) -> Result:
    x, gamma, beta, epsilon = a["x"], a.get("gamma"), a.get("beta"), a.number("epsilon", 1e-5)
    axes = sorted(axis % x.ndim for axis in a.integers("axes", range(x.ndim)))
    if axes == list(range(x.ndim - len(axes), x.ndim)):
        return functional.layer_norm(x, x.shape[x.ndim - len(axes) :], gamma, beta, epsilon)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    mean = x.mean(axes, keepdim=True)
    y = (x - mean) / torch.sqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)
    return _affine(y, None if gamma is None else gamma.reshape(shape), None if beta is None else beta.reshape(shape))


def _batch_norm(a: Arguments) -> Result:
    return functional.batch_norm(
        a["x"], a["mean"], a["variance"], a.get("gamma"), a.get("beta"), False, 0.0, a.number("epsilon", 1e-5)
    )


def _instance_norm(a: Arguments) -> Result:
    x = a["x"]
    axes = list(range(2, x.ndim))
    mean = x.mean(axes, keepdim=True)
    y = (x - mean) / torch.sqrt((x - mean).square().mean(axes, keepdim=True) + a.number("epsilon", 1e-5))
    return _affine(y, _channels(a.get("gamma"), x), _channels(a.get("beta"), x))


def _l2_norm(a: Arguments) -> Result:
    x = a["x"]
    return x / torch.sqrt(x.square().sum([-3, -2, -1], keepdim=True) + a.number("epsilon", 1e-6))


def _local_response_norm(a: Arguments) -> Result:
    return functional.local_response_norm(
        a["x"], a.integer("size"), a.number("alpha", 1e-4), a.number("beta", 0.75), a.number("k", 1.0)
    )


KERNELS: dict[str, Callable[[Arguments], Result]] = {
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "local_response_norm": _local_response_norm,
}
