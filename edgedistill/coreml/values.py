"""What kernels compute with: values, the arguments of one operation, and the limit on how far a result may grow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedistill.coreml.program import TensorType
from edgedistill.errors import VerificationError


def round_half(x: Tensor) -> Tensor:
    """`x` rounded to the nearest fp16, and held in its own type; beyond the range of fp16 it is infinite."""
    return x.half().to(x.dtype)


@dataclass(eq=False)
class Cell:
    """What a state holds now; a write replaces the tensor and never changes it in place."""

    value: Tensor
    rounds: bool = False

    def write(self, value: Tensor) -> None:
        """Store `value`, rounded to fp16 if the state `rounds`.

        Raises:
            VerificationError: if shape or type is not the state's.
        """
        if value.shape != self.value.shape or value.dtype != self.value.dtype:
            raise VerificationError(f"{list(value.shape)} {value.dtype} written to a state of {list(self.value.shape)}")
        self.value = round_half(value) if self.rounds else value


Value: TypeAlias = Tensor | Cell | tuple[str, ...]
# What a kernel returns: the one value its operation defines, a list of several, or None if it defines none.
Result: TypeAlias = Tensor | list[Value] | None

# No tensor of an operation that enlarges its input has more elements: a hostile program of a few hundred bytes could
# otherwise ask for all memory. 2^27 is 512 MiB in float32; the largest activation of a phone model is a fiftieth of it.
LARGEST = 2**27

# How integers and truth values are held. Unsigned 16 and 32 bits take the next wider type, which torch computes with.
INTEGERS: Mapping[str, torch.dtype] = {
    "bool": torch.bool,
    "int4": torch.int8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint1": torch.uint8,
    "uint2": torch.uint8,
    "uint3": torch.uint8,
    "uint4": torch.uint8,
    "uint6": torch.uint8,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint64": torch.int64,
}


def to_tensor(array: NDArray[Any], work: torch.dtype) -> Tensor | tuple[str, ...]:
    """The array as kernels hold it: floats in `work`, integers as `INTEGERS` says, text as a tuple."""
    if array.dtype == object:
        return tuple(str(text) for text in array.reshape(-1))
    if array.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(array)).to(work).reshape(array.shape)
    wide = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}.get(array.dtype.name, array.dtype)
    # ascontiguousarray makes a scalar a vector of one
    return torch.from_numpy(np.ascontiguousarray(array.astype(wide))).reshape(array.shape)


def fits(count: int) -> None:
    """Refuse a result of more than `LARGEST` elements.

    Raises:
        VerificationError: naming the size.
    """
    if count > LARGEST:
        raise VerificationError(f"the result would have {count} elements; the limit is {LARGEST}")


def broadcast_fits(x: Tensor, y: Tensor, *, of_matrices: bool = False) -> None:
    """The same for two tensors that are about to be broadcast against each other, or multiplied as matrices."""
    if x.numel() * y.numel() > LARGEST:
        matrix = 2 if of_matrices and x.ndim > 1 and y.ndim > 1 else 0
        sizes = zip_longest(reversed(x.shape[: x.ndim - matrix]), reversed(y.shape[: y.ndim - matrix]), fillvalue=1)
        fits(math.prod(max(pair) for pair in sizes) * (x.shape[-2] * y.shape[-1] if matrix else 1))


class Arguments:
    """The arguments of one operation, looked up by name.

    `outputs` are the types the program declares, `work` the float type computed in, `opset` that of the function.
    Every look-up raises VerificationError if a required argument is missing or of another kind.
    """

    __slots__ = ("_plain", "_values", "opset", "outputs", "work")

    def __init__(
        self,
        values: Mapping[str, tuple[Value, ...]],
        plain: Mapping[str, list[Any]],
        outputs: tuple[TensorType | None, ...],
        work: torch.dtype,
        opset: int,
    ) -> None:
        self._values, self._plain = values, plain
        self.outputs, self.work, self.opset = outputs, work, opset

    def __getitem__(self, name: str) -> Tensor:
        """The tensor `name`."""
        value = self._one(name)
        if not isinstance(value, Tensor):
            raise VerificationError(f"argument {name} is not a tensor")
        return value

    def get(self, name: str) -> Tensor | None:
        """The tensor `name`, or None if it was not given."""
        return self[name] if name in self._values else None

    def all(self, name: str) -> list[Tensor]:
        """Every tensor bound to `name`, at least one."""
        found = [value for value in self._values.get(name, ()) if isinstance(value, Tensor)]
        if not found or len(found) != len(self._values[name]):
            raise VerificationError(f"argument {name} is not a list of tensors")
        return found

    def cell(self, name: str) -> Cell:
        """The state `name`."""
        value = self._one(name)
        if not isinstance(value, Cell):
            raise VerificationError(f"argument {name} is not a state")
        return value

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """The whole numbers of `name`, in order."""
        if name not in self._values and default is not None:
            return list(default)
        numbers = self._list(name)
        if not all(isinstance(number, int) for number in numbers):
            raise VerificationError(f"argument {name} is not whole numbers")
        return numbers

    def integer(self, name: str, default: int | None = None) -> int:
        """The whole number `name`."""
        return int(self._single(name, self.integers(name, None if default is None else [default])))

    def number(self, name: str, default: float | None = None) -> float:
        """The number `name`."""
        if name not in self._values and default is not None:
            return default
        return float(self._single(name, self._list(name)))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """The truth value `name`."""
        if name not in self._values and default is not None:
            return default
        return bool(self._single(name, self._list(name)))

    def flags(self, name: str, count: int) -> list[bool]:
        """`count` truth values; all False if `name` was not given."""
        found = [bool(flag) for flag in self._list(name)] if name in self._values else [False] * count
        if len(found) != count:
            raise VerificationError(f"argument {name} has {len(found)} entries instead of {count}")
        return found

    def text(self, name: str, default: str | None = None) -> str:
        """The text `name`."""
        if name not in self._values and default is not None:
            return default
        return str(self._single(name, list(self.texts(name))))

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts of `name`."""
        value = self._one(name)
        if not isinstance(value, tuple):
            raise VerificationError(f"argument {name} is not text")
        return value

    def is_text(self, name: str) -> bool:
        """True if `name` is text."""
        return isinstance(self._one(name), tuple)

    def has(self, name: str) -> bool:
        """True if `name` was given."""
        return name in self._values

    def _one(self, name: str) -> Value:
        bound = self._values.get(name, ())
        if len(bound) != 1:
            raise VerificationError(f"argument {name} is {'missing' if not bound else 'a list'}")
        return bound[0]

    def _list(self, name: str) -> list[Any]:
        if name in self._plain:
            return self._plain[name]
        numbers: list[Any] = self[name].reshape(-1).tolist()
        return numbers

    @staticmethod
    def _single(name: str, values: list[Any]) -> Any:
        if len(values) != 1:
            raise VerificationError(f"argument {name} has {len(values)} values instead of one")
        return values[0]
