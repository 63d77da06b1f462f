"""What is asked of a conversion before the package ships: that it computes the student, in three steps.

1. The rounding. Each float constant of the package is the fp16 number nearest to what it was in float32, which the
   conversion noted; that is all that tells the package from its float32 twin, the same program with those put back.
2. The graph. That twin, computed in float64, against the student's formulas in float64, with the constants as files
   store them: the same to 1e-7, of static activations with their grids and with the grids left out. The student itself
   rounds to float32, so that of its codes some few that lie between two are others.
   A decoder also reads a text in parts, and answers what it answers to the whole.
3. The range. The package with every result rounded to fp16, as an ideal device does: finite, and near the student. Of
   static activations fp16 moves many by a step, so a student whose steps are large beside its answers is refused.

A package of float32 has nothing rounded and no range to leave. What is asked of it are the graph in float64, and
answers in float32 that are the student's: those of floats to 1e-5, those of integers to a step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edgedistill.coreml import Constant, Evaluator, Operation, Precision, Program, overflow_audit
from edgedistill.errors import VerificationError
from edgedistill.exporters._proof import STEP, Limits, answer, step_of, where
from edgedistill.exporters.coreml.contents import Contents, half
from edgedistill.exporters.coreml.describe import places_in, weights_in
from edgedistill.exporters.coreml.network import Arithmetic, network
from edgedistill.exporters.coreml.probing import EXACT, divergence
from edgedistill.exporters.coreml.running import Session, beginning
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students import Signature

Feeds = Mapping[str, NDArray[Any]]

# Fractions of the largest output. Students of every family are at 0 but for decoders, which are at 4e-9: numpy, which
# folds the speeds of rotary positions into constants, has other last digits for some than torch.
GRAPH = Limits(1e-7, 1e-7)
SINGLE = Limits(1e-5, 1e-5)
GRIDS = Limits(0.02, 0.2)
ROUNDING = Limits(1e-9, 1e-9)
RANGE = {False: Limits(0.02, 0.1), True: Limits(0.1, 0.3)}  # by whether activations are static
_CHANGED = "coremltools changed what is computed."
_ROUNDED_TWICE = "this network is not the frozen student's."
_COARSE = (
    "its steps are so large beside its answers that the rounding of fp16 changes them. Take activations = "
    '"dynamic_int8" or "float" in [export.scheme], which Core ML computes without these steps; or build without this '
    "format, and then `edgedistill convert BUNDLE --format coreml --precision float32`."
)
_TOO_LARGE = "fp16 is too coarse for this student; export it to another format."


def prove(
    frozen: FrozenStudent, signatures: Sequence[Signature], shipped: Program, floats: Mapping[str, NDArray[np.float32]]
) -> None:
    """Compare a package of float16 with the student on random inputs; `floats` are its constants unrounded.

    Raises:
        VerificationError: saying which step failed, and by how much.
    """
    feeds = _tried(frozen, signatures)
    static = bool(frozen.ranges or frozen.points)
    # what the speed of a rotary position is off grows with the length of a text
    longest = max(size for signature in signatures for port in signature.inputs for size in port.shape)
    graph = Limits(*(limit * max(1.0, longest / 256) for limit in GRAPH)) if shipped.main.states else GRAPH
    twin = unrounded(shipped, floats)
    found = _computed(twin, "fp64", feeds)
    _near(found, answers(network(frozen), feeds), graph, "the graph", explain=partial(_first, frozen, twin, feeds))
    if static:
        bare = answers(network(frozen, grids=False), feeds)
        _near(_computed(without_grids(twin), "fp64", feeds), bare, graph, "the graph without its grids")
    student = answers(frozen.to_module("as_trained" if static else "float"), feeds)
    if static:
        _near(found, student, GRIDS, "the graph with another rounding", _ROUNDED_TWICE)
    if shipped.main.states:
        longest_text = max(feeds, key=lambda given: given["input_ids"].size)
        whole, parts = _computed(shipped, "fp64", [longest_text]), _in_parts(shipped, longest_text)
        _near([parts], whole, ROUNDING, "a text read in parts")
    _in_range(shipped, feeds, student, static)


def prove_float32(frozen: FrozenStudent, signatures: Sequence[Signature], shipped: Program) -> None:
    """Compare a package of float32 with the student on random inputs: its graph in float64, and itself in float32.

    Static activations are the student's own integers there, and the answers within one step of the output.

    Raises:
        VerificationError: saying which of both failed, and by how much.
    """
    feeds, step = _tried(frozen, signatures), step_of(frozen)
    wanted = answers(network(frozen, exact=True), feeds, "float32")
    explain = partial(_first, frozen, shipped, feeds)
    _near(_computed(shipped, "fp64", feeds), wanted, GRAPH, "the graph", explain=explain)
    student = frozen.to_module("float" if step is None else "as_trained")
    own = [answer(student, given) for given in feeds]
    largest = max(float(np.abs(item).max()) for item in own)
    limits = SINGLE if step is None else Limits(*[STEP * step / largest] * 2)
    _near(_computed(shipped, "fp32", feeds), own, limits, "float32 arithmetic", _ROUNDED_TWICE, explain)


def _tried(frozen: FrozenStudent, signatures: Sequence[Signature]) -> list[dict[str, NDArray[Any]]]:
    """At least 6 random inputs, at least one of each signature."""
    random = np.random.default_rng(0)
    return [frozen.sample(signature, random) for signature in signatures for _ in range(-(-6 // len(signatures)))]


def _in_range(shipped: Program, feeds: Sequence[Feeds], student: Sequence[NDArray[Any]], static: bool) -> None:
    """The third step."""
    found = _computed(shipped, "fp16", feeds)
    try:
        _near(found, student, RANGE[static], "fp16 arithmetic", _COARSE if static else _TOO_LARGE)
    except VerificationError as error:
        start = beginning(shipped.main)
        seen = (item for given in feeds for item in overflow_audit(shipped, {**given, **start}))
        wild = [item for item in seen if item.typed == "fp16"]
        if not wild:
            raise
        raise VerificationError(
            f"{error} Values leave the range of fp16, first in {wild[0].operation} ({wild[0].name}), where they "
            f"reach {wild[0].largest:.3g}."
        ) from None


def _in_parts(program: Program, text: Feeds) -> NDArray[Any]:
    """What a decoder answers to a text of which it reads a half, three single tokens, and the rest."""
    session, ids = Session(Evaluator(program, "fp64")), text["input_ids"]
    cuts = [ids.shape[1] // 2 + step for step in range(4)]
    parts = [part for part in np.split(ids, cuts, axis=1) if part.size]
    return np.concatenate([session.read(part) for part in parts], axis=1)


def unrounded(program: Program, floats: Mapping[str, NDArray[np.float32]]) -> Program:
    """The program with the float32 value of each constant that coremltools rounded to fp16; compute it in float64.

    A constant that it made of others after rounding them stays as it is.

    Raises:
        VerificationError: if a constant is not its float32 value rounded.
    """

    def restore(operation: Operation) -> Operation:
        bound = operation.inputs.get("val", ()) if operation.kind == "const" else ()
        exact = floats.get(operation.name)
        if exact is None or not bound or not isinstance(value := bound[0], Constant) or not value.type.is_float:
            return operation
        held = half(exact) if value.type.dtype == "fp16" else exact
        if value.shape != exact.shape or not np.array_equal(value.array(), held):
            raise VerificationError(
                f"Core ML: the fp16 program holds other numbers in {operation.name} than those that it should round."
            )
        return dataclasses.replace(operation, inputs={"val": (Constant(value.type, inline=exact),)})

    return _changed(program, restore)


def without_grids(program: Program) -> Program:
    """The program with its quantize and dequantize operations passing on what comes in.

    Raises:
        VerificationError: if anything but a dequantize reads the codes of a quantize.
    """
    pairs = {op.inputs["input"]: op.outputs[0].type for op in program.main.operations if op.kind == "dequantize"}

    def convert(operation: Operation) -> Operation:
        if operation.kind not in ("quantize", "dequantize"):
            return operation
        kind = pairs.get((operation.name,)) if operation.kind == "quantize" else operation.outputs[0].type
        if kind is None:
            raise VerificationError(f"{program.path}: the codes of {operation} are not dequantized.")
        outputs = tuple(dataclasses.replace(output, type=kind) for output in operation.outputs)
        return dataclasses.replace(operation, kind="identity", inputs={"x": operation.inputs["input"]}, outputs=outputs)

    return _changed(program, convert)


def _changed(program: Program, convert: Callable[[Operation], Operation]) -> Program:
    function = dataclasses.replace(program.main, operations=tuple(map(convert, program.main.operations)))
    return dataclasses.replace(program, functions={program.default: function})


def _computed(program: Program, precision: Precision, feeds: Sequence[Feeds]) -> list[NDArray[Any]]:
    """What a program answers to each of the inputs."""
    evaluator = Evaluator(program, precision)
    start = beginning(evaluator.function)
    return [evaluator.predict({**given, **start})[evaluator.function.outputs[0]] for given in feeds]


class _Stored(TorchFunctionMode):
    """Within it a network in float64 computes with what the conversion stores: factors as float32, and 1/x to divide by
    x unless it `divides`.

    Products of two float32 tensors, which are the angles of rotary positions, are those of float64.
    """

    def __init__(self, divides: bool) -> None:
        super().__init__()
        self.divides = divides

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [item for item in args if isinstance(item, Tensor)]
        by = args[1] if func in (Tensor.div, Tensor.__truediv__) else None
        if isinstance(by, float | int) and not self.divides:
            return args[0] * float(np.float32(1) / np.float32(by))
        if func in (Tensor.mul, Tensor.__mul__) and [item.dtype for item in tensors] == [torch.float32] * 2:
            args = [item.double() for item in tensors]
        return func(*map(_stored, args), **{key: _stored(value) for key, value in (kwargs or {}).items()})


def _stored(value: Any) -> Any:
    return float(np.float32(value)) if isinstance(value, float) else value


@torch.no_grad()
def answers(module: torch.nn.Module, feeds: Sequence[Feeds], precision: Arithmetic = "float16") -> list[NDArray[Any]]:
    """What a module answers to each of the inputs, in float64, its constants those that files of `precision` store."""
    double, found = module.double(), []
    with _Stored(divides=precision == "float32"):
        for given in feeds:
            inputs = (torch.from_numpy(value) for value in given.values())
            found.append(double(*(x.double() if x.is_floating_point() else x for x in inputs)).logits.numpy())
    return found


def _first(frozen: FrozenStudent, twin: Program, feeds: Sequence[Feeds], number: int) -> str | None:
    """Which layer of the float32 twin first differs from the student's for the inputs of that number."""
    contents = Contents(twin)
    places = places_in(contents, frozen)
    return divergence(frozen, twin, weights_in(contents, frozen), places, feeds[number], EXACT)


def _near(
    found: Sequence[NDArray[Any]],
    expected: Sequence[NDArray[Any]],
    limits: Limits,
    what: str,
    reason: str = _CHANGED,
    explain: Callable[[int], str | None] | None = None,
) -> None:
    errors = [float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)]
    largest = max(float(np.abs(wanted).max()) for wanted in expected)
    if not (np.median(errors) <= limits.median * largest and max(errors) <= limits.worst * largest):
        raise VerificationError(
            f"Core ML: {what} answers up to {max(errors):.3g} away from what it should on random inputs (largest "
            f"output {largest:.3g}, median difference {np.median(errors):.3g}; {limits.worst * largest:.2g} and "
            f"{limits.median * largest:.2g} are allowed): {reason}"
            + where(explain, [int(n) for n in np.argsort(errors)[::-1]])
        )
