"""Activation functions, of each element, and softmax."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgedistill.coreml.values import Arguments, Result
from edgedistill.errors import VerificationError


def _per_channel(a: Arguments, name: str, x: Tensor) -> Tensor:
    """The vector `name` [C], shaped to meet axis 1 of `x`."""
    vector = a[name]
    return vector.reshape(-1, *[1] * (x.ndim - 2)) if x.ndim > 1 else vector


def _gelu(a: Arguments) -> Result:
    x, mode = a["x"], a.text("mode", "EXACT")
    if mode == "EXACT":
        return functional.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return functional.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise VerificationError(f"gelu has no mode {mode}")


def _softplus(x: Tensor) -> Tensor:
    # torch's softplus becomes the identity above 20, which float64 can tell from the true value
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))


def _softplus_parametric(a: Arguments) -> Result:
    x = a["x"]
    return _per_channel(a, "alpha", x) * _softplus(_per_channel(a, "beta", x) * x)


def _prelu(a: Arguments) -> Result:
    x = a["x"]
    return torch.where(x > 0, x, _per_channel(a, "alpha", x) * x)


def _clamped_relu(a: Arguments) -> Result:
    x = a["x"]
    return torch.clamp(torch.where(x >= 0, x, a["alpha"] * x), max=a.number("beta"))


def _thresholded_relu(a: Arguments) -> Result:
    x = a["x"]
    return torch.where(x >= a["alpha"], x, torch.zeros((), dtype=x.dtype))


def _sigmoid_hard(a: Arguments) -> Result:
    return torch.clamp(a.number("alpha", 0.2) * a["x"] + a.number("beta", 0.5), 0, 1)


def _softmax(a: Arguments) -> Result:
    return torch.softmax(a["x"], a.integer("axis", -1))


KERNELS: dict[str, Callable[[Arguments], Result]] = {
    "clamped_relu": _clamped_relu,
    "elu": lambda a: functional.elu(a["x"], a.number("alpha", 1.0)),
    "gelu": _gelu,
    "leaky_relu": lambda a: functional.leaky_relu(a["x"], a.number("alpha", 0.01)),
    "linear_activation": lambda a: a["x"] * a.number("alpha", 1.0) + a.number("beta", 0.0),
    "prelu": _prelu,
    "relu": lambda a: torch.relu(a["x"]),
    "relu6": lambda a: torch.clamp(a["x"], 0, 6),
    "scaled_tanh": lambda a: a.number("alpha", 1.0) * torch.tanh(a.number("beta", 1.0) * a["x"]),
    "sigmoid": lambda a: torch.sigmoid(a["x"]),
    "sigmoid_hard": _sigmoid_hard,
    "silu": lambda a: functional.silu(a["x"]),
    "softmax": _softmax,
    "softplus": lambda a: _softplus(a["x"]),
    "softplus_parametric": _softplus_parametric,
    "softsign": lambda a: a["x"] / (1 + a["x"].abs()),
    "thresholded_relu": _thresholded_relu,
}
