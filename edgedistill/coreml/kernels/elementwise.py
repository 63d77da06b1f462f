"""Operations that compute each element on its own, two tensors being broadcast against each other as in numpy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgedistill.coreml.values import INTEGERS, Arguments, Result, broadcast_fits
from edgedistill.errors import VerificationError

_WRAPS = {"uint8": 8, "uint16": 16, "uint32": 32, "int8": -8, "int16": -16, "int32": -32}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Arguments], Result]:
    return lambda a: function(a["x"])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Arguments], Result]:
    def kernel(a: Arguments) -> Result:
        x, y = a["x"], a["y"]
        broadcast_fits(x, y)
        return function(x, y)

    return kernel


def _round(x: Tensor) -> Tensor:
    return torch.round(x)  # halves to even, as numpy and Core ML's own constant folding


def _sqrt(x: Tensor) -> Tensor:
    """Rounded once, as IEEE 754 says: torch's own is not where MKL computes it. Through float64 nothing changes."""
    return x.double().sqrt().to(x.dtype)


def _real_div(x: Tensor, y: Tensor) -> Tensor:
    if x.is_floating_point():
        return x / y
    # Apple does not say how two integers that do not divide are rounded; where they divide there is no question.
    if bool((y == 0).any()) or bool((torch.remainder(x, y) != 0).any()):
        raise VerificationError("real_div of integers that do not divide has no defined result")
    return torch.div(x, y, rounding_mode="floor")


def _log(a: Arguments) -> Result:
    return torch.log(a["x"] + a.number("epsilon", 1e-45))


def _rsqrt(a: Arguments) -> Result:
    shifted: Tensor = a["x"] + a.number("epsilon", 1e-12)
    return shifted.rsqrt()


def _inverse(a: Arguments) -> Result:
    shifted: Tensor = a["x"] + a.number("epsilon", 1e-4)
    return shifted.reciprocal()


def _clip(a: Arguments) -> Result:
    return torch.clamp(a["x"], a.number("alpha"), a.number("beta"))


def _threshold(a: Arguments) -> Result:
    return torch.maximum(a["x"], a["alpha"])


def _select(a: Arguments) -> Result:
    condition, x, y = a["cond"], a["a"], a["b"]
    broadcast_fits(condition, x)
    broadcast_fits(condition, y)
    return torch.where(condition.bool(), x, y)


def _cast(a: Arguments) -> Result:
    """To float: the type computed in (the evaluator rounds); to integer: towards zero, then modulo the type's range."""
    x, dtype = a["x"], a.text("dtype")
    if dtype.startswith("fp"):
        return x.to(a.work)
    if dtype == "bool":
        return x != 0
    if dtype not in _WRAPS:
        raise VerificationError(f"cast to {dtype} is not known here")
    whole = x.trunc().to(torch.int64) if x.is_floating_point() else x.to(torch.int64)
    width = _WRAPS[dtype]
    if width > 0:
        return (whole & ((1 << width) - 1)).to(INTEGERS[dtype])
    half = 1 << (-width - 1)
    return (((whole + half) & ((1 << -width) - 1)) - half).to(INTEGERS[dtype])


KERNELS: dict[str, Callable[[Arguments], Result]] = {
    "abs": _unary(torch.abs),
    "acos": _unary(torch.acos),
    "asin": _unary(torch.asin),
    "atan": _unary(torch.atan),
    "atanh": _unary(torch.atanh),
    "ceil": _unary(torch.ceil),
    "cos": _unary(torch.cos),
    "cosh": _unary(torch.cosh),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "exp2": _unary(lambda x: torch.pow(torch.tensor(2, dtype=x.dtype), x)),
    "floor": _unary(torch.floor),
    "identity": _unary(lambda x: x),
    "logical_not": _unary(torch.logical_not),
    "round": _unary(_round),
    "sign": _unary(torch.sign),
    "sin": _unary(torch.sin),
    "sinh": _unary(torch.sinh),
    "sqrt": _unary(_sqrt),
    "square": _unary(torch.square),
    "tan": _unary(torch.tan),
    "tanh": _unary(torch.tanh),
    "add": _binary(torch.add),
    "equal": _binary(torch.eq),
    "floor_div": _binary(torch.floor_divide),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mod": _binary(torch.remainder),
    "mul": _binary(torch.mul),
    "not_equal": _binary(torch.ne),
    "pow": _binary(torch.pow),
    "real_div": _binary(_real_div),
    "sub": _binary(torch.sub),
    "cast": _cast,
    "clip": _clip,
    "inverse": _inverse,
    "log": _log,
    "rsqrt": _rsqrt,
    "select": _select,
    "threshold": _threshold,
}
