"""What an ML Program is, as plain frozen data: functions, operations, typed values, constants and declared features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.coreml.blob import Record, WeightFile, decode


@dataclass(frozen=True)
class TensorType:
    """An element type ("fp16", "int4", "string", ...) and a shape; None is a size known only when the program runs.

    `shape` itself is None if even the number of dimensions is known only then.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def is_float(self) -> bool:
        """True of fp16, fp32 and fp64."""
        return self.dtype.startswith("fp")

    @property
    def is_static(self) -> bool:
        """True if every size is known before the program runs."""
        return self.shape is not None and None not in self.shape


@dataclass(frozen=True, eq=False)
class Constant:
    """A value written in the package: inside the program, or as a record of a weight file that is read when asked."""

    type: TensorType
    inline: NDArray[Any] | None = None
    file: WeightFile | None = None
    record: Record | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes; a constant has no unknown ones."""
        return tuple(size or 0 for size in self.type.shape or ())

    def array(self) -> NDArray[Any]:
        """The values as stored: sub-byte integers as int8 or uint8, fp16 as float16, text as Python strings.

        Raises:
            VerificationError: if the weight file changed since the package was opened.
        """
        if self.file is not None and self.record is not None:
            return decode(self.file.data(self.record), self.type.dtype, self.shape)
        return np.array([]) if self.inline is None else self.inline.copy()


@dataclass(frozen=True)
class Output:
    """A value that an operation defines; `type` is None for what is not a tensor (a dictionary of a classifier)."""

    name: str
    type: TensorType | None


@dataclass(frozen=True, eq=False)
class Operation:
    """One step: named arguments, each a list of earlier values (by name) or constants, and the values it defines."""

    kind: str
    name: str
    inputs: Mapping[str, tuple[str | Constant, ...]]
    outputs: tuple[Output, ...]
    blocks: int = 0  # nested blocks, of loops and branches; their operations are not kept

    def __str__(self) -> str:
        return f"{self.kind} ({self.name})"

    @property
    def names_read(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        return tuple(bound for bindings in self.inputs.values() for bound in bindings if isinstance(bound, str))


@dataclass(frozen=True)
class Feature:
    """An input or output as the model's description promises it to an app.

    `bounds` are the smallest and largest size per dimension (None: no upper limit); `shapes` an explicit list.
    """

    name: str
    kind: str  # "multiArray", "image", "string", "dictionary", ...
    dtype: str = ""
    shape: tuple[int, ...] = ()
    bounds: tuple[tuple[int, int | None], ...] = ()
    shapes: frozenset[tuple[int, ...]] = frozenset()
    description: str = ""

    @property
    def is_flexible(self) -> bool:
        """True if more than one shape is accepted."""
        return len(self.shapes) > 1 or any(low != high for low, high in self.bounds)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """True if an array of `shape` may be fed; always true of what is not an array."""
        if self.kind != "multiArray":
            return True
        if self.shapes:
            return shape in self.shapes
        if self.bounds:
            pairs = zip(shape, self.bounds, strict=False)
            inside = (low <= size and (high is None or size <= high) for size, (low, high) in pairs)
            return len(shape) == len(self.bounds) and all(inside)
        return shape == self.shape or not self.shape


@dataclass(frozen=True, eq=False)
class Function:
    """One entry point; `opset` is 7 for CoreML7 (iOS 17), 8 for CoreML8 (iOS 18)."""

    name: str
    opset: int
    inputs: Mapping[str, TensorType]
    states: Mapping[str, TensorType]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    features: Mapping[str, Feature] = field(default_factory=dict)
    results: Mapping[str, Feature] = field(default_factory=dict)


@dataclass(frozen=True)
class Metadata:
    """What the package says about itself."""

    description: str = ""
    author: str = ""
    license: str = ""
    version: str = ""
    user: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Program:
    """A package that was parsed and validated; no weight has been read yet.

    `specification` is 8 for iOS 17 and 9 for iOS 18; `default` names the function that runs when none is asked for.
    """

    path: Path
    specification: int
    functions: Mapping[str, Function]
    default: str
    metadata: Metadata
    weight_files: tuple[WeightFile, ...] = ()

    @property
    def main(self) -> Function:
        """The default function."""
        return self.functions[self.default]
