"""What may go wrong on a device: values beyond fp16, and traits of a program that are known to be trouble."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedistill.coreml.evaluate import Evaluator
from edgedistill.coreml.program import Constant, Function, Operation, Program

_LARGEST_FP16 = 65504.0
_LARGEST_DIMENSION = 16384
_HIGHEST_RANK = 5
_IOS18 = 8
_SUB_BYTE = frozenset({"int4", "uint1", "uint2", "uint3", "uint4", "uint6"})
_OFTEN_OFF_THE_ENGINE = frozenset(
    {
        "argsort",
        "cond",
        "gather",
        "gather_along_axis",
        "gather_nd",
        "gru",
        "lstm",
        "non_maximum_suppression",
        "non_zero",
        "one_hot",
        "rnn",
        "scatter",
        "scatter_along_axis",
        "scatter_nd",
        "topk",
        "while_loop",
    }
)
_DUPLICATE_BYTES = 1024


@dataclass(frozen=True)
class Overflow:
    """A value that fp16 cannot hold: `largest` is the greatest finite absolute value seen.

    `typed` is the type the program gives it: "fp16" overflows on a device, "fp32" would if it were converted.
    """

    name: str
    operation: str
    typed: str
    largest: float
    infinite: bool
    nan: bool


@dataclass(frozen=True)
class Risk:
    """A trait of a program that is known to be trouble on some device; none of them says what a device will do."""

    code: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"risk: {self.message} ({self.where})"


def overflow_audit(program: Program, feeds: Mapping[str, NDArray[Any]]) -> list[Overflow]:
    """Every value of one prediction, constants of rank 1 and more included, beyond the range of fp16 or not finite.

    It is computed in float64, so an overflow is seen where it starts and does not spread to later operations. Sums
    inside an operation (scores of an attention, squares of a norm) are not seen.

    Raises:
        VerificationError: as `Evaluator.predict`.
    """
    types = {output.name: output.type for op in program.main.operations for output in op.outputs}
    types |= {**program.main.inputs, **program.main.states}
    found: dict[tuple[str, str], Overflow] = {}

    def look(name: str, operation: str, value: Tensor) -> None:
        kind = types.get(name)
        if kind is None or not value.is_floating_point() or value.numel() == 0:
            return
        size = value.abs()
        if bool((size <= _LARGEST_FP16).all()):  # also False for nan
            return
        finite = size[torch.isfinite(size)]
        largest = float(finite.max()) if finite.numel() else 0.0
        seen = Overflow(
            name, operation, kind.dtype, largest, bool(torch.isinf(size).any()), bool(torch.isnan(size).any())
        )
        found[name, operation] = seen

    evaluator = Evaluator(program, "fp64", look)
    for name, value in evaluator.constants.items():
        if isinstance(value, Tensor) and value.ndim > 0:  # a scalar is a parameter; what it does shows where it is used
            look(name, "const", value)
    evaluator.predict(feeds)
    return list(found.values())


def lint(program: Program) -> list[Risk]:
    """Traits of the default function and of the package that are known to be trouble; an empty list promises nothing.

    Raises:
        VerificationError: if a weight file changed since the package was opened.
    """
    return [*_of_types(program.main), *_of_operations(program), *_of_weights(program), *_of_package(program)]


def _of_types(function: Function) -> Iterator[Risk]:
    floats = Counter(o.type.dtype for op in function.operations if op.kind != "const" for o in op.outputs if o.type)
    if floats["fp32"]:
        yield Risk(
            "fp32",
            function.name,
            f"{floats['fp32']} values are computed in fp32, which the Neural Engine does not have",
        )
    flexible = sorted(name for name, feature in function.features.items() if feature.is_flexible)
    if flexible:
        yield Risk("flexible-input", ", ".join(flexible), "flexible input shapes may keep a program off the Engine")
    unknown = [o.name for op in function.operations for o in op.outputs if o.type and not o.type.is_static]
    if unknown:
        yield Risk("dynamic-shape", unknown[0], f"{len(unknown)} values have shapes known only when the program runs")
    for operation in function.operations:
        for output in operation.outputs:
            shape = (output.type and output.type.shape) or ()
            if len(shape) > _HIGHEST_RANK:
                yield Risk("rank", str(operation), f"rank {len(shape)}; Core ML computes up to rank {_HIGHEST_RANK}")
            if operation.kind != "const" and max((size or 0 for size in shape), default=0) > _LARGEST_DIMENSION:
                yield Risk("dimension", str(operation), f"a dimension above {_LARGEST_DIMENSION} leaves the Engine")
    for name, feature in {**function.features, **function.results}.items():
        if feature.kind == "multiArray" and feature.dtype not in ("fp32", "int32"):
            yield Risk("io-type", name, f"{feature.dtype} at the interface; older systems and Swift code expect fp32")


def _of_operations(program: Program) -> Iterator[Risk]:
    kinds = Counter(op.kind for op in program.main.operations)
    for kind in sorted(_OFTEN_OFF_THE_ENGINE & set(kinds)):
        yield Risk(
            "operation", program.main.name, f"{kind} ({kinds[kind]}x) often runs on the CPU, with a copy each way"
        )
    if program.main.opset < _IOS18:
        narrow = [op for op in program.main.operations if any(c.type.dtype in _SUB_BYTE for c in _constants(op))]
        if narrow:
            yield Risk("sub-byte", str(narrow[0]), f"{len(narrow)} constants below 8 bits need iOS 18")
    if program.specification != program.main.opset + 1:
        yield Risk(
            "specification",
            program.main.name,
            f"specification {program.specification} with operation set CoreML{program.main.opset}",
        )


def _constants(operation: Operation) -> Iterator[Constant]:
    for bindings in operation.inputs.values():
        yield from (one for one in bindings if isinstance(one, Constant))


def _of_weights(program: Program) -> Iterator[Risk]:
    """Equal data stored twice; coremltools stores a shared weight once, so a second copy is a mistake of the export."""
    seen: dict[str, str] = {}
    places: set[tuple[Any, int]] = set()
    for operation in program.main.operations:
        for constant in _constants(operation):
            file, record = constant.file, constant.record
            if file is None or record is None or record.size_bytes < _DUPLICATE_BYTES:
                continue
            if (file.path, record.offset) in places:
                continue
            places.add((file.path, record.offset))
            digest = hashlib.sha256(file.data(record).tobytes()).hexdigest()
            if digest in seen:
                yield Risk("duplicate", str(operation), f"{record.size_bytes} bytes equal to those of {seen[digest]}")
            seen.setdefault(digest, str(operation))


def _of_package(program: Program) -> Iterator[Risk]:
    told = program.metadata
    missing = [name for name in ("author", "license", "description", "version") if not getattr(told, name)]
    if missing:
        yield Risk("metadata", program.path.name, f"the package says no {', '.join(missing)}")
    features = {**program.main.features, **program.main.results}
    silent = sorted(name for name, feature in features.items() if not feature.description)
    if silent:
        yield Risk("description", ", ".join(silent), "inputs and outputs without a description")
