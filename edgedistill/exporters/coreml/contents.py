"""The numbers in a program, in the terms of a student: codes with scales, grids of activations, floats as fp16."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgedistill.coreml import Constant, Operation, Program
from edgedistill.errors import VerificationError
from edgedistill.exporters.coreml.network import Arithmetic
from edgedistill.quant.activations import LOW, Range
from edgedistill.quant.stored import QuantizedTensor

# A float constant of fewer elements is a parameter of the graph: a factor, an epsilon. Execution proves those.
SMALL = 10
# Where coremltools rounds a tensor of fewer elements to fp16, nothing in it becomes zero.
_KEPT_FROM_ZERO = 400
_LEAST = 2.0**-24  # of fp16
_TYPES = {"int8": ("int8", "uint8", "int4", "uint4"), "int4": ("int4", "uint4")}
# the argument with the codes, and the one that moves them
_CODES = {
    "constexpr_affine_dequantize": ("quantized_data", "zero_point"),
    "constexpr_blockwise_shift_scale": ("data", "offset"),
}


def half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """`values` as coremltools rounds them to fp16: to nearest, but in a small tensor nothing becomes zero.

    What would vanish there keeps its sign and gets the least magnitude of fp16, as it may be an epsilon.
    """
    with np.errstate(over="ignore"):
        rounded: NDArray[np.float16] = np.asarray(values.astype(np.float16))
    if values.size < _KEPT_FROM_ZERO:
        kept = np.copysign(_LEAST, values).astype(np.float16)
        rounded = np.where((rounded == 0) & (values != 0), kept, rounded)
    return rounded


class Contents:
    """The operations of a program's default function, by name, and the numbers they hold.

    Every method raises VerificationError if an operation is missing or holds something else.
    """

    def __init__(self, program: Program) -> None:
        self.path = program.path
        self.operations = {operation.name: operation for operation in program.main.operations}

    def named(self, *prefixes: str) -> dict[str, Operation]:
        """The operations whose kind starts with one of `prefixes`."""
        return {name: op for name, op in self.operations.items() if op.kind.startswith(prefixes)}

    def floats(self) -> dict[str, Constant]:
        """Every float constant, by the name of its operation."""
        found = {name: op.inputs.get("val") for name, op in self.operations.items() if op.kind == "const"}
        values = {name: bound[0] for name, bound in found.items() if bound}
        return {name: v for name, v in values.items() if isinstance(v, Constant) and v.type.is_float}

    def weight(self, name: str, label: str) -> QuantizedTensor:
        """Codes and scales of a compressed constant on a grid of `label`, e.g. "int4 per group of 32"."""
        operation, where = self._operation(name), f"{self.path}: {name}"
        if operation.kind not in _CODES:
            raise VerificationError(f"{where} is a {operation.kind}: it does not hold integers with scales.")
        data, shift = _CODES[operation.kind]
        stored = self._constant(operation, data)
        if stored.type.dtype not in _TYPES.get(label[:4], ()):
            raise VerificationError(f"{where} holds {stored.type.dtype}, not {label}.")
        codes = stored.array()
        if codes.ndim < 2 or not codes.size or codes.max() > 127:
            raise VerificationError(f"{where} holds no weight of int8 codes.")
        if shift in operation.inputs and self._constant(operation, shift).array().any():
            raise VerificationError(f"{where} is not symmetric: its {shift} is not zero.")
        if "axis" in operation.inputs and self._constant(operation, "axis").array().any():
            raise VerificationError(f"{where} has its scales along another axis than 0.")
        scales = self._constant(operation, "scale")
        if not scales.type.is_float:
            raise VerificationError(f"{where} has scales of type {scales.type.dtype}.")
        shape = _shape_of_scales(scales.shape, codes.shape, label)
        if shape is None:
            raise VerificationError(f"{where} has scales {list(scales.shape)}, not {label} of {list(codes.shape)}.")
        return QuantizedTensor(codes.astype(np.int8), scales.array().astype(np.float32).reshape(shape))

    def grid(self, name: str) -> Range:
        """The grid of a quantize operation and of the dequantize operations that read it, in terms of int8 codes."""
        readers = [op for op in self.operations.values() if name in op.names_read]
        if self._operation(name).kind != "quantize" or any(op.kind != "dequantize" for op in readers) or not readers:
            raise VerificationError(f"{self.path}: {name} is no quantize operation whose codes are dequantized.")
        grids = {self._grid(op) for op in (self._operation(name), *readers)}
        told = self._constant(self._operation(name), "output_dtype").array().reshape(-1)[:2].tolist()
        if len(grids) > 1 or told not in (["int8"], ["uint8"]):
            raise VerificationError(f"{self.path}: {name} is dequantized on another grid, or is {str(told)[:40]}.")
        (dtype,) = told
        (grid,) = grids
        return grid if dtype == "int8" else Range(grid.scale, grid.zero_point + LOW)

    def _grid(self, operation: Operation) -> Range:
        scale, zero = self._constant(operation, "scale"), np.array(0)
        if "zero_point" in operation.inputs:
            zero = self._constant(operation, "zero_point").array()
        if scale.shape != () or zero.shape != () or not scale.type.is_float or zero.dtype.kind not in "iu":
            raise VerificationError(f"{self.path}: {operation.name} has no grid for a whole tensor.")
        return Range(float(scale.array()), int(zero))

    def _operation(self, name: str) -> Operation:
        if name not in self.operations:
            raise VerificationError(f"{self.path}: has no operation {name}, which its card names.")
        return self.operations[name]

    def _constant(self, operation: Operation, argument: str) -> Constant:
        """The constant that an argument is bound to, or the one of the `const` that it names."""
        bound = operation.inputs.get(argument, ())
        named = self.operations.get(bound[0]) if len(bound) == 1 and isinstance(bound[0], str) else None
        if named is not None and named.kind == "const":
            bound = named.inputs.get("val", ())
        if len(bound) != 1 or not isinstance(bound[0], Constant):
            raise VerificationError(f"{self.path}: the {argument} of {operation.name} is not one constant.")
        return bound[0]


def holds(constant: Constant, values: NDArray[np.float32], precision: Arithmetic = "float16") -> bool:
    """Whether a constant is `values` in that precision, in whatever shape; of a matrix, its leading rows are enough."""
    count = math.prod(constant.shape)
    row = values[0].size if values.ndim > 1 else values.size
    if (
        constant.type.dtype != {"float16": "fp16", "float32": "fp32"}[precision]
        or not 0 < count <= values.size
        or count % row
    ):
        return False
    wanted = values.reshape(-1)[:count]
    return bool(np.array_equal(constant.array().reshape(-1), half(wanted) if precision == "float16" else wanted))


def is_neutral(values: NDArray[np.float32]) -> bool:
    """Whether a tensor is all ones or all zeros: as a gain or a bias it does nothing, and coremltools drops it."""
    return bool((values == 1).all() or (values == 0).all())


def is_weight(constant: Constant, weight: QuantizedTensor) -> bool:
    """Whether a float constant has the values of a quantized tensor, in any order: the same weight a second time."""
    if math.prod(constant.shape) != weight.codes.size:
        return False
    dtype = np.float16 if constant.type.dtype == "fp16" else np.float32
    return bool(np.array_equal(np.sort(constant.array(), axis=None), np.sort(weight.values().astype(dtype), axis=None)))


def _shape_of_scales(scales: tuple[int, ...], codes: tuple[int, ...], label: str) -> tuple[int, ...] | None:
    """[channels] or [channels, groups] for the scales of a file; None if they are not those of `label`."""
    channels = codes[0]
    if label.endswith("per channel"):
        plain = ((channels,), (channels, *[1] * (len(codes) - 1)), *([()] if channels == 1 else []))
        return (channels,) if scales in plain else None
    size = int(label.rpartition(" ")[2])
    fits = len(codes) == 2 and codes[1] % size == 0 and scales == (channels, codes[1] // size)
    return scales if fits else None
