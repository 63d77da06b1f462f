"""Look inside a running .onnx: the first layer that computes something else than the student's, the largest value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters._divergence import Call, alone, follow, weights_of, without_dynamic
from edgedistill.exporters.onnx.contents import Contents, open_file, parse, read
from edgedistill.exporters.onnx.groups import Group, groups
from edgedistill.exporters.onnx.packing import CODES
from edgedistill.exporters.onnx.running import errors_of, session_of
from edgedistill.exporters.onnx.ties import GroupCall, Tie, as_floats
from edgedistill.quant.frozen import FrozenStudent

# What float32 operators may differ by, of the largest value: sums in another order.
_ROUNDING = 1e-5
_PRODUCTS = ("MatMul", "Gemm", "Conv")
# between codes and the operator that multiplies with them, and between a grid and the layer that reads it
_PASSES = (
    "Cast", "Clip", "Flatten", "Gather", "Identity", "Pad", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
Values = dict[str, NDArray[Any]]


def first_divergence(frozen: FrozenStudent, path: Path, feeds: Mapping[str, NDArray[Any]]) -> str | None:
    """Which layer of the file first differs from the student's for these inputs, and by how much; None if none does.

    The file runs as it is, so that groups of a static one are floats; what that leaves open (`ties`) is no difference.

    Raises:
        VerificationError: if the file is foreign or damaged.
        MissingDependency: if onnxruntime is not installed.
        StageError: if ONNX Runtime refuses the file or the inputs.
    """
    return next(_compared(frozen, path, [feeds]))[0]


def ties(frozen: FrozenStudent, path: Path, every: Iterable[Mapping[str, NDArray[Any]]]) -> list[list[Tie]]:
    """For each of these inputs the codes of a static file that are not the student's, with groups as floats.

    The student goes on with the file's codes: where none is another, the answer is the student's.

    Raises:
        VerificationError: if anything differs for another reason, or as `first_divergence`.
        MissingDependency, StageError: as `first_divergence`.
    """
    found = []
    for told, seen in _compared(frozen, path, every):
        if told is not None:
            raise VerificationError(f"{path}: with groups as floats it first differs from the student at {told}.")
        found.append(seen)
    return found


def _compared(
    frozen: FrozenStudent, path: Path, every: Iterable[Mapping[str, NDArray[Any]]]
) -> Iterator[tuple[str | None, list[Tie]]]:
    """What `follow` says of each of these inputs, and the ties up to there."""
    file, values_of = open_file(path), _computing(path)
    plain, module = frozen.build(), without_dynamic(frozen)
    static = groups(file)
    for feeds in every:
        values = values_of(feeds)
        calls: dict[str, list[Any]] = {}
        for place, weight in weights_of(frozen, plain).items():
            calls[place] = [_group_call(file, values, item) for item in static if item.weight == f"{weight}{CODES}"]
            if calls[place]:
                continue
            embeds = isinstance(plain.get_submodule(place), nn.Embedding)
            reached = [node for reader in file.readers.get(f"{weight}{CODES}", ()) for node in _reached(file, reader)]
            wanted = [node for node in reached if (node.op_type not in _PRODUCTS) == embeds]
            calls[place] = [_call(file, values, node, place) for node in wanted]
        logits, seen = torch.from_numpy(values[file.graph.output[0].name]), list[Tie]()
        # between groups a static student leaves no choice: the answers are equal
        rounding = 0.0 if static else _ROUNDING
        yield follow(module, calls, feeds, as_floats(seen, alone(_ROUNDING)), logits, rounding), seen


def largest_value(path: Path, feeds: Mapping[str, NDArray[Any]]) -> tuple[float, str]:
    """The largest finite size of any float that the file computes for these inputs, and the operator that gives it.

    Raises:
        VerificationError, MissingDependency, StageError: as `first_divergence`.
    """
    file, found = open_file(path), (0.0, "nothing")
    for name, value in computed(path, feeds).items():
        node = file.makers.get(name)
        if node is not None and value.dtype.kind == "f" and value.size:
            size = np.abs(value[np.isfinite(value)]).max(initial=0.0)
            found = max(found, (float(size), f"{node.op_type} {name}"))
    return found


def computed(path: Path, feeds: Mapping[str, NDArray[Any]]) -> Values:
    """Every value of one run, by its name in the file."""
    return _computing(path)(feeds)


def _computing(path: Path) -> Callable[[Mapping[str, NDArray[Any]]], Values]:
    """`computed` for any inputs, with the file loaded once."""
    from onnx import ValueInfoProto

    model = parse(path, read(path))
    known = {port.name for port in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in known]
    model.graph.output.extend(ValueInfoProto(name=name) for name in names)
    session = session_of(path, model.SerializeToString())
    every = [port.name for port in session.get_outputs()]

    def run(feeds: Mapping[str, NDArray[Any]]) -> Values:
        try:
            found = session.run(every, {port.name: feeds[port.name] for port in session.get_inputs()})
        except errors_of() as error:
            raise StageError(f"ONNX Runtime cannot run {path} on these inputs: {str(error)[:200]}.") from error
        return {**feeds, **dict(zip(every, found, strict=True))}

    return run


def _reached(file: Contents, node: Any, depth: int = 0) -> list[Any]:
    """The operators that multiply with codes which `node` reads, and those that give the rows it looks up."""
    if node.op_type in _PRODUCTS:
        return [node]
    users = file.readers.get(node.output[0], [])
    onward = [user for user in users if user.op_type in (*_PRODUCTS, *_PASSES, "DequantizeLinear")]
    if depth > 8 or len(onward) < len(users) or not users:
        return [node]
    return [found for user in onward for found in _reached(file, user, depth + 1)]


def _call(file: Contents, values: Values, node: Any, place: str) -> Call:
    if node.op_type not in _PRODUCTS:  # rows of a table: the ids go in as they are
        ids = next(port.name for port in file.graph.input if values[port.name].dtype.kind == "i")
        return Call(torch.from_numpy(values[ids].copy()), torch.from_numpy(values[node.output[0]].copy()))
    source = node.input[0]
    answer = node.output[0]
    for user in file.readers.get(answer, []):
        other = next((name for name in user.input if name != answer), "")
        if user.op_type == "Add" and _is_bias(file, other, place) and _is_read(file, user.output[0]):
            answer = user.output[0]
    given = torch.from_numpy(values[source].copy())
    return Call(given, torch.from_numpy(values[answer].copy()), _step_of(file, source))


def _group_call(file: Contents, values: Values, layer: Group) -> GroupCall:
    """Codes in and out, as the values that they stand for."""

    def real(name: str, grid: tuple[str, str]) -> torch.Tensor:
        scale, zero = (torch.from_numpy(file.array(part).copy()) for part in grid)
        return (torch.from_numpy(values[name].copy()).float() - zero) * scale

    sums = torch.from_numpy(values[layer.sums].copy())
    return GroupCall(real(layer.codes, layer.source), real(layer.output, layer.result), sums)


def _is_bias(file: Contents, name: str, place: str) -> bool:
    """Whether a value is the layer's bias, as it is or made of its codes."""
    maker = file.makers.get(name)
    return f"{place}.bias" in (name, "" if maker is None else maker.input[0].removesuffix(CODES))


def _is_read(file: Contents, name: str) -> bool:
    return name in file.readers or any(name == port.name for port in file.graph.output)


def _step_of(file: Contents, name: str) -> float:
    """The step of the grid that a value lies on, looked for through operators that only move values."""
    for _ in range(8):
        node = file.makers.get(name)
        if node is None:
            return 0.0
        if node.op_type == "DequantizeLinear":
            return float(file.array(node.input[1]).max())
        if node.op_type not in _PASSES:
            return 0.0
        name = node.input[0]
    return 0.0
