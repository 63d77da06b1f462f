"""Read an .onnx of this package back from its own bytes: the codes, the scales, and what must not be in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgedistill.errors import VerificationError
from edgedistill.exporters import same_weights
from edgedistill.exporters.onnx.codes import axes_of
from edgedistill.exporters.onnx.contents import Contents, attributes, open_file
from edgedistill.exporters.onnx.graph import MOST_CONSTANT
from edgedistill.exporters.onnx.groups import INT8, INVERSE, centred, groups, rounds_as_trained
from edgedistill.exporters.onnx.layers import static_bias, users_of
from edgedistill.exporters.onnx.packing import CODES, SCALES
from edgedistill.exporters.onnx.static import TO_UINT8
from edgedistill.quant.activations import Range
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.stored import QuantizedTensor

_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")


def read_back(path: Path) -> dict[str, QuantizedTensor]:
    """Codes and scales of every weight, by name, as every operator of the file uses them.

    Raises:
        VerificationError: if the file is foreign or damaged, or an operator uses codes with other scales or axes.
    """
    return _weights(open_file(path))


def verify(frozen: FrozenStudent, path: Path) -> None:
    """Check that the file holds exactly the frozen student: every code, scale, float tensor and grid, and no other.

    Raises:
        VerificationError: naming the tensor and the first difference.
        StageError: if the student has no static form.
    """
    from onnx import TensorProto

    file = open_file(path)
    same_weights(path, _weights(file), frozen)
    for name, grid in frozen.grids().items():
        kind = file.constants[f"{name}{CODES}"].data_type
        if kind != (TensorProto.INT4 if grid.bits == 4 else TensorProto.INT8):
            raise VerificationError(f"{path}: {name} is not stored with {grid.bits} bits.")
    grids = _grids(frozen)
    model = frozen.build()
    named = {f"{name}{part}" for name in frozen.quantized for part in (CODES, SCALES)} | _zero_points(file)
    computed = {name: buffer.numpy() for name, buffer in model.named_buffers() if name in file.constants}
    for name, values in (_floats(frozen, model) | _numbers(file, grids) | computed).items():
        _same(file, name, values)
        named.add(name)
    for name in file.constants:
        if name not in named and file.array(name).size > MOST_CONSTANT:
            raise VerificationError(f"{path}: holds {file.array(name).size} numbers ({name}) that are no student's.")
        if name not in file.readers:
            raise VerificationError(f"{path}: {name} is in the file, but nothing uses it.")
    _no_inline_numbers(file)
    _quantizers(file, grids)


def _weights(file: Contents) -> dict[str, QuantizedTensor]:
    from onnx import TensorProto

    found: dict[str, QuantizedTensor] = {}
    for key, tensor in file.constants.items():
        if not key.endswith(CODES) or tensor.data_type not in (TensorProto.INT8, TensorProto.INT4):
            continue
        name = key.removesuffix(CODES)
        codes, scales = file.array(key), file.array(f"{name}{SCALES}")
        per_channel = scales.shape == codes.shape[:1]
        grouped = codes.ndim == scales.ndim == 2 and len(codes) == len(scales) and scales.shape[1] > 0
        if codes.ndim < 2 or scales.dtype != np.float32 or not (per_channel or grouped) or 0 in codes.shape:
            raise VerificationError(f"{file.path}: {name} {list(codes.shape)} has scales {list(scales.shape)}.")
        if grouped and codes.shape[1] % scales.shape[1]:
            raise VerificationError(f"{file.path}: {name} {list(codes.shape)} has groups of unequal width.")
        found[name] = QuantizedTensor(codes.copy(), scales.copy())
        own = [key, f"{name}{SCALES}"]
        for reader in file.readers.get(key, ()):
            if not _dequantizes(file, reader, own, axes_of(found[name])):
                raise VerificationError(f"{file.path}: {reader.op_type} uses {name} with other scales than its own.")
    return found


def _dequantizes(file: Contents, reader: Any, own: list[str], axes: dict[str, int]) -> bool:
    """Whether an operator that reads codes makes `code * scale` of them: of all, or of the rows that are looked up."""
    if reader.op_type == "DequantizeLinear":
        return list(reader.input[:2]) == own and attributes(reader) == axes and centred(file, reader)
    users = file.readers.get(reader.output[0], [])
    if reader.op_type == "Cast":  # of 4-bit codes, which a static layer reads as int8 ones
        wide = [reader.output[0], own[1]]
        direct = [user.op_type == "DequantizeLinear" and _dequantizes(file, user, wide, axes) for user in users]
        return attributes(reader) == {"to": INT8} and bool(users) and all(direct)
    if reader.op_type != "Gather":
        return False
    return (
        _looks_up(reader, own[0], reader.input[-1])
        and bool(users)
        and all(
            user.op_type == "DequantizeLinear"
            and len(user.input) == 2
            and user.input[0] == reader.output[0]
            and attributes(user) == axes
            and _looks_up(file.makers.get(user.input[1]), own[1], reader.input[-1])
            for user in users
        )
    )


def _zero_points(file: Contents) -> set[str]:
    """The names of zero points of weights, all of which are 0."""
    every = [node for node in file.graph.node if node.op_type == "DequantizeLinear" and len(node.input) == 3]
    return {node.input[2] for node in every if node.input[1].endswith(SCALES) and centred(file, node)}


def _looks_up(node: Any, table: str, ids: str) -> bool:
    return (
        node is not None
        and node.op_type == "Gather"
        and list(node.input) == [table, ids]
        and attributes(node) == {"axis": 0}
    )


def _floats(frozen: FrozenStudent, model: nn.Module) -> dict[str, NDArray[Any]]:
    """The float rest by its names in the file; a static layer's bias is its int32 codes."""
    found: dict[str, NDArray[Any]] = dict(frozen.floats)
    users = users_of(frozen, model)
    for layer, (source, _) in frozen.layer_grids(model).items():
        bias = static_bias(frozen, layer, users[layer], source)
        if bias is not None:
            del found[f"{layer}.bias"]
            found[f"{layer}.bias{CODES}"] = bias.numpy()
    return found


def _grids(frozen: FrozenStudent) -> dict[str, Range]:
    """The grid of every place of a static student where values are rounded."""
    found = dict(frozen.points)
    for layer, (source, result) in frozen.ranges.items():
        found |= {f"{layer}.input": source, f"{layer}.output": result}
    return found


def _numbers(file: Contents, grids: dict[str, Range]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for place, grid in grids.items():
        found[f"{place}.scale"] = np.array(grid.scale, np.float32)
        if f"{place}{INVERSE}" in file.constants:
            found[f"{place}{INVERSE}"] = np.array(1 / np.float32(grid.scale), np.float32)
        found[f"{place}.zero_point"] = np.array(grid.zero_point + TO_UINT8, np.uint8)
    return found


def _same(file: Contents, name: str, values: NDArray[Any]) -> None:
    found = file.array(name)
    if (found.dtype, found.shape) != (values.dtype, values.shape) or found.tobytes() != values.tobytes():
        raise VerificationError(f"{file.path}: {name} is not in the file as the student holds it.")


def _no_inline_numbers(file: Contents) -> None:
    """Constants are under a name in one list, where they were compared, and not in the operators."""
    for node in file.graph.node:
        for attribute in node.attribute:
            if attribute.ByteSize() > 8 * MOST_CONSTANT:
                raise VerificationError(f"{file.path}: {node.op_type} holds numbers that are not the student's.")


def _quantizers(file: Contents, grids: dict[str, Range]) -> None:
    """Values are rounded on each of the student's grids and nowhere else, and come back on the same grid."""
    places = {(f"{place}.scale", f"{place}.zero_point"): place for place in grids}
    layers = groups(file)
    rounded = {layer.output: layer.result for layer in layers}
    for node in file.graph.node:
        if node.op_type in _QUANTIZERS and node.output[0] not in rounded:
            rounded[node.output[0]] = tuple(node.input[1:]) if node.op_type == "QuantizeLinear" else ("", "")
            if not rounds_as_trained(file, node):
                raise VerificationError(f"{file.path}: {node.input[1]} rounds values that are not on its grid already.")
    missing = set(places.values())
    for codes, grid in rounded.items():
        if grid not in places:
            raise VerificationError(f"{file.path}: rounds values that the student keeps float ({codes}).")
        readers = file.readers.get(codes, [])
        read = [tuple(n.input[1:]) if n.op_type == "DequantizeLinear" else ("", "") for n in readers]
        if not read or set(read) != {grid}:
            raise VerificationError(f"{file.path}: values on the grid of {places[grid]} are read on another one.")
        missing.discard(places[grid])
    if any(layer.codes not in rounded for layer in layers):
        raise VerificationError(f"{file.path}: multiplies codes of no grid.")
    if missing:
        raise VerificationError(f"{file.path}: values of {min(missing)} are not rounded to their grid.")
