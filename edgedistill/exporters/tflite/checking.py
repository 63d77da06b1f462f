"""Compare a .tflite with the student that it should be: every number, and the form in which each layer uses it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgedistill.errors import VerificationError
from edgedistill.exporters import same_weights
from edgedistill.exporters.tflite.decoding import derived_tables, entry_points
from edgedistill.exporters.tflite.generating import DECODE
from edgedistill.exporters.tflite.reading import Stored, Use, names, parse, uses, weights, without_logits
from edgedistill.exporters.tflite.weights import LOOKUP
from edgedistill.quant.activations import bias_codes
from edgedistill.quant.frozen import FrozenStudent

# A float constant of the graph itself, such as the 1e-12 of a layer norm, has one value.
_GRAPH_FLOATS = 1
_IDS = ("input_ids", "tokens")  # inputs that have the length of an entry point


def verify(frozen: FrozenStudent, path: Path) -> None:
    """Check that the file holds exactly the frozen student: every code, scale, bias and float tensor, difference 0; and
    that its entry points are the student's.

    Raises:
        VerificationError: naming the tensor and the first difference, or the entry point.
    """
    schema, model = parse(path)
    same_weights(path, weights(schema, model, path), frozen)
    _check_entry_points(frozen, schema, model, path)
    _no_foreign_operators(schema, model, path)
    stored = names(model, path)
    partial = without_logits(model)
    for number, subgraph in enumerate(model.subgraphs):
        found = list(uses(schema, model, subgraph, stored))
        for use in found:
            _check_form(frozen, schema, model, subgraph, use, path)
            _check_bias(frozen, schema, model, subgraph, use, path)
        missing = sorted(stored.keys() - {use.name for use in found})
        if missing and number not in partial:
            raise VerificationError(f"{path}: no layer uses {missing[0]}.")
        _check_grids(frozen, schema, model, subgraph, path)
    _floats_present(frozen, schema, model, stored, path)


def _check_entry_points(frozen: FrozenStudent, schema: Any, model: Any, path: Path) -> None:
    """Apps call them by name: names, inputs and outputs are those of a student with the lengths that the file has."""
    kinds = {schema.TensorType.INT32: "int32", schema.TensorType.FLOAT32: "float32"}

    def ports(graph: Any, entries: Any) -> set[tuple[str, tuple[int, ...], str]]:
        tensors = [(entry.name.decode(), graph.tensors[entry.tensorIndex]) for entry in entries or []]
        return {(name, tuple(map(int, tensor.shape)), kinds.get(tensor.type, "other")) for name, tensor in tensors}

    found = {}
    for entry in model.signatureDefs or []:
        graph = model.subgraphs[entry.subgraphIndex]
        found[entry.signatureKey.decode()] = ports(graph, entry.inputs), ports(graph, entry.outputs)
    taken = [port for key, (takes, _) in found.items() if key != DECODE for port in takes]
    lengths = {shape[-1] for name, shape, _ in taken if name in _IDS and shape}
    try:
        wanted = {one.name: (set(one.inputs), set(one.outputs)) for one in entry_points(frozen, sorted(lengths))}
    except ValueError as error:
        raise VerificationError(f"{path}: its entry points are not the student's: {error}.") from None
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise VerificationError(
                f"{path}: entry point {name!r} is not the student's: it takes and answers "
                f"{_spelled(found.get(name))}, the student's {_spelled(wanted.get(name))}."
            )


def _spelled(ports: tuple[Iterable[tuple[str, tuple[int, ...], str]], ...] | None) -> str:
    if ports is None:
        return "nothing (it is not there)"
    return " -> ".join(", ".join(f"{n} {kind}{list(shape)}" for n, shape, kind in sorted(side)) for side in ports)


def _no_foreign_operators(schema: Any, model: Any, path: Path) -> None:
    known = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    used = {model.operatorCodes[o.opcodeIndex].builtinCode for s in model.subgraphs for o in s.operators}
    found = {known.get(code, f"operator {code}") for code in used}
    foreign = sorted(n for n in found if n.startswith(("STABLEHLO_", "operator ")) or n in ("CUSTOM", "DELEGATE"))
    if foreign:
        raise VerificationError(f"{path}: holds operators that phones do not run: {', '.join(foreign)}.")


def _check_form(frozen: FrozenStudent, schema: Any, model: Any, subgraph: Any, use: Use, path: Path) -> None:
    """Activations of the layer are of the kind that the scheme says: it decides what the runtime computes."""
    code = model.operatorCodes[use.operator.opcodeIndex].builtinCode
    source, result = subgraph.tensors[use.operator.inputs[0]], subgraph.tensors[use.operator.outputs[0]]
    float32, int8 = schema.TensorType.FLOAT32, schema.TensorType.INT8
    kinds = [source.type, result.type, use.dequantized]
    if code == getattr(schema.BuiltinOperator, LOOKUP):
        if kinds[1:] != [float32, False]:
            raise VerificationError(f"{path}: the rows of {use.name} are not looked up as integers.")
        return
    kind = frozen.scheme.activations
    wanted = [int8, int8, False] if kind == "static_int8" else [float32, float32, kind == "float"]
    if kinds != wanted:
        raise VerificationError(f"{path}: the layer of {use.name} does not compute with {kind} activations.")
    ranges = frozen.ranges.get(use.name.removesuffix(".weight"))
    if ranges is not None and [_grid(source), _grid(result)] != [tuple(ranges[0]), tuple(ranges[1])]:
        raise VerificationError(f"{path}: the input or output of {use.name}'s layer is not on the student's grid.")


def _check_bias(frozen: FrozenStudent, schema: Any, model: Any, subgraph: Any, use: Use, path: Path) -> None:
    """The layer's own bias, bit for bit; as int32 on the grid of the sums where the layer is static."""
    if model.operatorCodes[use.operator.opcodeIndex].builtinCode == getattr(schema.BuiltinOperator, LOOKUP):
        return
    owner = use.name.removesuffix(".weight")
    scales = frozen.quantized[use.name].scales
    wanted: NDArray[Any] = frozen.floats.get(f"{owner}.bias", np.zeros(len(scales), np.float32))
    if frozen.scheme.activations == "static_int8":
        grid = _grid(subgraph.tensors[use.operator.inputs[0]]) or (1.0, 0)
        codes = bias_codes(torch.from_numpy(wanted.copy()), grid[0], torch.from_numpy(scales.copy()))
        wanted = codes.to(torch.int32).numpy()
    given = [int(index) for index in use.operator.inputs[2:3] if index >= 0]
    if given:
        data = model.buffers[subgraph.tensors[given[0]].buffer].data
        found = None if data is None else bytes(data)  # computed by other operators: not a constant any more
    else:
        found = bytes(wanted.nbytes)
    if found != wanted.tobytes():
        raise VerificationError(f"{path}: {owner}.bias is not in the file as the student holds it.")


def _grid(tensor: Any) -> tuple[float, int] | None:
    found = tensor.quantization
    if found is None or found.scale is None or len(found.scale) != 1:
        return None
    return float(found.scale[0]), int(found.zeroPoint[0])


def _check_grids(frozen: FrozenStudent, schema: Any, model: Any, subgraph: Any, path: Path) -> None:
    """Every int8 activation is on a grid that the student was trained with, and every such grid is there."""
    trained = {tuple(grid) for grid in frozen.points.values()}
    trained |= {tuple(grid) for pair in frozen.ranges.values() for grid in pair}
    found = set()
    for tensor in subgraph.tensors:
        if tensor.type != schema.TensorType.INT8 or model.buffers[tensor.buffer].data is not None:
            continue
        grid = _grid(tensor)
        if grid not in trained:
            raise VerificationError(f"{path}: an int8 activation is on a grid {grid} that the student does not have.")
        found.add(grid)
    missing = sorted(name for name, grid in frozen.points.items() if tuple(grid) not in found)
    if missing:
        raise VerificationError(f"{path}: no activation is on the grid of {missing[0]}.")


def _floats_present(frozen: FrozenStudent, schema: Any, model: Any, stored: dict[str, Stored], path: Path) -> None:
    """The float rest is in the file bit for bit, a table up to the longest bucket, and no other float constant is."""
    biases = {f"{name.removesuffix('weight')}bias" for name in stored}  # compared with their layers
    derived = derived_tables(frozen)
    constants = {bytes(model.buffers[number].data) for number in _float_constants(schema, model)}
    for name, values in frozen.floats.items():
        # the converter leaves out what changes nothing: a norm that was never trained multiplies by 1 and adds 0
        neutral = bool((values == values.flat[0]).all()) and values.flat[0] in (0, 1)
        if name not in biases and not neutral and not any(_is(data, values) for data in constants):
            raise VerificationError(f"{path}: {name} is not in the file as the student holds it.")
    for data in constants:
        if len(data) > 4 * _GRAPH_FLOATS and not any(_is(data, table) for table in (*frozen.floats.values(), *derived)):
            raise VerificationError(f"{path}: holds {len(data) // 4} float constants that are not the student's.")


def _float_constants(schema: Any, model: Any) -> set[int]:
    """The buffers of float tensors, but for the scales of groups."""
    types, found = schema.TensorType, set()
    wide = (types.FLOAT32, types.FLOAT16, types.BFLOAT16, types.FLOAT64)
    for subgraph in model.subgraphs:
        details = [t.quantization.details for t in subgraph.tensors if t.quantization is not None]
        scales = {detail.scales for detail in details if detail is not None}
        for index, tensor in enumerate(subgraph.tensors):
            if tensor.type in wide and model.buffers[tensor.buffer].data is not None and index not in scales:
                found.add(tensor.buffer)
    return found


def _is(data: bytes, values: NDArray[np.float32]) -> bool:
    """Whether these are the values, or the first rows of a table of them."""
    whole = values.tobytes()
    return data == whole or (values.ndim > 1 and len(data) >= values[0].nbytes and whole.startswith(data))
