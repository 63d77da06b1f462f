"""Reductions, running sums and sorting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgedistill.coreml.values import Arguments, Result
from edgedistill.errors import VerificationError

_Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _over_axes(function: _Reduction) -> Callable[[Arguments], Result]:
    def kernel(a: Arguments) -> Result:
        x = a["x"]
        axes = a.integers("axes", range(x.ndim))
        y = function(x, axes or list(range(x.ndim)), a.flag("keep_dims", False))
        # integers: torch widens sums to 64 bits, and a mean is cut off towards zero as Core ML's constant folding does
        return y if x.is_floating_point() else (y.trunc() if y.is_floating_point() else y).to(x.dtype)

    return kernel


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).mean(axes, keepdim=keep)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keep)


def _argument(function: Callable[..., Tensor]) -> Callable[[Arguments], Result]:
    def kernel(a: Arguments) -> Result:
        return function(a["x"], a.integer("axis", -1), a.flag("keep_dims", False))

    return kernel


def _cumsum(a: Arguments) -> Result:
    x, axis = a["x"], a.integer("axis", 0)
    reverse = a.flag("reverse", False)
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis, dtype=x.dtype)
    total = total - x if a.flag("exclusive", False) else total
    return total.flip(axis) if reverse else total


def _sorted(x: Tensor, axis: int, ascending: bool) -> tuple[Tensor, Tensor]:
    """Values and positions in order; of equal values the first comes first."""
    values, positions = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    return values, positions


def _topk(a: Arguments) -> Result:
    x, axis, count = a["x"], a.integer("axis", -1), a.integer("k", 1)
    size = x.shape[axis]
    count = size if count == -1 else count
    if not 0 <= count <= size:
        raise VerificationError(f"top {count} of {size} elements")
    values, positions = (part.narrow(axis, 0, count) for part in _sorted(x, axis, a.flag("ascending", False)))
    return [values, positions] if len(a.outputs) > 1 else values


def _argsort(a: Arguments) -> Result:
    return _sorted(a["x"], a.integer("axis", -1), a.flag("ascending", False))[1]


KERNELS: dict[str, Callable[[Arguments], Result]] = {
    "argsort": _argsort,
    "cumsum": _cumsum,
    "reduce_argmax": _argument(torch.argmax),
    "reduce_argmin": _argument(torch.argmin),
    "reduce_l1_norm": _over_axes(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "reduce_l2_norm": _over_axes(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "reduce_log_sum": _over_axes(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "reduce_log_sum_exp": _over_axes(_log_sum_exp),
    "reduce_max": _over_axes(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "reduce_mean": _over_axes(_mean),
    "reduce_min": _over_axes(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "reduce_prod": _over_axes(_prod),
    "reduce_sum": _over_axes(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "reduce_sum_square": _over_axes(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "topk": _topk,
}
