"""Read a .tflite of this package back from its own bytes: the codes and the scales."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import ForeignFile, VerificationError
from edgedistill.exporters.tflite.carriers import CHANNEL_AXIS, LAYOUTS, restored
from edgedistill.exporters.tflite.shrink import METADATA
from edgedistill.exporters.tflite.structure import check_graph, check_offsets
from edgedistill.exporters.tflite.weights import LAYERS, LOOKUP, unpacked
from edgedistill.quant.stored import QuantizedTensor

GROUP = 32
_MOST_BYTES = 2**31 - 1  # what its offsets reach
# What a damaged table makes of offsets, sizes and numbers; anything else is a mistake of ours and must be seen as one.
DAMAGE = (
    ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError, struct.error
)  # fmt: skip
# Operators that multiply by, or look up in, a constant: what the scheme calls weights.
_WEIGHTED = (*LAYERS, LOOKUP, "BATCH_MATMUL", "TRANSPOSE_CONV", "CONV_3D", "GATHER", "GATHER_ND")


class Stored(NamedTuple):
    """Where a weight is in the file, and in which layout."""

    buffer: int
    layout: str


class Use(NamedTuple):
    """One operator that uses a weight; `dequantized`: through a DEQUANTIZE."""

    name: str
    operator: Any
    dequantized: bool


def read_back(path: Path) -> dict[str, QuantizedTensor]:
    """Codes and scales of every weight, by name, as every signature of the file will use them.

    Raises:
        VerificationError: if the file is not a .tflite of this package, a weight is not integer, or signatures differ.
    """
    return weights(*parse(path), path)


def weights(schema: Any, model: Any, path: Path) -> dict[str, QuantizedTensor]:
    """As `read_back`, of a file that was parsed."""
    stored = names(model, path)
    shown: list[dict[int, list[Any]]] = []
    for subgraph in model.subgraphs:
        shown.append({})
        for tensor in subgraph.tensors:
            shown[-1].setdefault(tensor.buffer, []).append(tensor)
    found = {name: _weight(schema, model, shown, name, place, path) for name, place in stored.items()}
    _no_other_weights(schema, model, {place.buffer for place in stored.values()}, path)
    return found


def parse(path: Path) -> tuple[Any, Any]:
    """The generated flatbuffer code, and the file as its object API has it (`ModelT`), with every index in range.

    Raises:
        VerificationError: if the file is not a .tflite, or damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ForeignFile(f"{path}: damaged .tflite file: none of a flatbuffer has more than 2 GiB.")
        data = bytearray(path.read_bytes())
    except OSError as error:
        raise ForeignFile(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        check_offsets(data)
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
        check_graph(schema, model)
    except DAMAGE as error:  # the checks', or of the generated code where it trips over what they let pass
        told = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise ForeignFile(f"{path}: damaged .tflite file: {told}. Export it again.") from error
    return schema, model


def names(model: Any, path: Path) -> dict[str, Stored]:
    """What the file's metadata says about its weights.

    Raises:
        VerificationError: if there is none, or it does not make sense.
    """
    for entry in model.metadata or []:
        if entry.name == METADATA.encode():
            break
    else:
        raise ForeignFile(f"{path}: has no {METADATA} metadata: it was not exported by this package.")
    damaged = ForeignFile(f"{path}: its {METADATA} metadata is damaged. Export it again.")
    try:
        about = json.loads(bytes(model.buffers[entry.buffer].data))
        buffers, layouts = about["buffers"], about.get("layouts", {})
        found = {name: Stored(number, layouts.get(name, "")) for name, number in buffers.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise damaged from None
    for place in found.values():
        known = type(place.buffer) is int and 0 < place.buffer < len(model.buffers) and isinstance(place.layout, str)
        if not known or model.buffers[place.buffer].data is None or place.layout not in CHANNEL_AXIS:
            raise damaged
    if len({place.buffer for place in found.values()}) < len(found):
        raise damaged
    return found


def uses(schema: Any, model: Any, subgraph: Any, stored: dict[str, Stored]) -> Iterator[Use]:
    """The operators of a subgraph that use the weights in `stored`, in their order."""
    by_buffer = {place.buffer: name for name, place in stored.items()}
    codes = {getattr(schema.BuiltinOperator, name) for name in (*LAYERS, LOOKUP)}
    dequantized = {}
    for operator in subgraph.operators:
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        if code == schema.BuiltinOperator.DEQUANTIZE and len(operator.inputs) and len(operator.outputs):
            name = by_buffer.get(subgraph.tensors[operator.inputs[0]].buffer)
            if name is not None:
                dequantized[int(operator.outputs[0])] = name
        if code in codes and len(operator.inputs) > 1 and len(operator.outputs) and min(operator.inputs[:2]) >= 0:
            index = int(operator.inputs[1])
            name = by_buffer.get(subgraph.tensors[index].buffer)
            if name is not None:
                yield Use(name, operator, False)
            elif index in dequantized:
                yield Use(dequantized[index], operator, True)


def _weight(
    schema: Any, model: Any, shown: list[dict[int, list[Any]]], name: str, place: Stored, path: Path
) -> QuantizedTensor:
    """One weight, from all the tensors that show its buffer."""
    found: QuantizedTensor | None = None
    partial = without_logits(model)
    for number, (subgraph, by_buffer) in enumerate(zip(model.subgraphs, shown, strict=True)):
        tensors = by_buffer.get(place.buffer, [])
        if not tensors and number not in partial:
            raise VerificationError(f"{path}: {name} is not used by every signature; a weight is stored twice.")
        for tensor in tensors:
            if tensor.type not in (schema.TensorType.INT8, schema.TensorType.INT4) or tensor.quantization is None:
                raise VerificationError(f"{path}: {name} is not an int8 or int4 tensor.")
            data = np.asarray(model.buffers[place.buffer].data, np.uint8)
            shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
            if len(shape) != 4 if place.layout in LAYOUTS else len(shape) < 2 or (place.layout and len(shape) != 2):
                raise VerificationError(f"{path}: {name} has the shape {list(shape)}.")
            codes = unpacked(data, prod(shape)) if tensor.type == schema.TensorType.INT4 else data.view(np.int8)
            scales = _scales(schema, model, subgraph, tensor, name, place.layout, path)
            seen = QuantizedTensor(restored(codes.reshape(shape), place.layout).copy(), scales)
            if found is not None and not (_same(seen.codes, found.codes) and _same(seen.scales, found.scales)):
                raise VerificationError(f"{path}: the scales or types of {name} differ between signatures.")
            found = seen
    if found is None:
        raise VerificationError(f"{path}: {name} is used by no signature.")
    return found


def without_logits(model: Any) -> set[int]:
    """The subgraphs that answer keys and values only: of a decoder's last layers they lack what only logits need."""
    return {
        int(signature.subgraphIndex)
        for signature in model.signatureDefs or []
        if all(entry.name != b"logits" for entry in signature.outputs or [])
    }


def _scales(
    schema: Any, model: Any, subgraph: Any, tensor: Any, name: str, layout: str, path: Path
) -> NDArray[np.float32]:
    """The scales of a weight: one for each channel, or float16 ones of groups."""
    given = tensor.quantization
    if given.details is None:
        axis = given.quantizedDimension
        if given.scale is None or np.any(given.zeroPoint) or axis != CHANNEL_AXIS[layout]:
            raise VerificationError(f"{path}: {name} is not symmetric along axis {CHANNEL_AXIS[layout]}.")
        return np.asarray(given.scale, np.float32).copy()
    scales = subgraph.tensors[given.details.scales]
    data, shape = model.buffers[scales.buffer].data, [int(size) for size in tensor.shape]
    groups = [shape[0], shape[-1] // GROUP]
    fits = len(shape) == 2 and not shape[1] % GROUP and list(scales.shape) == groups
    block = given.details.blockSize == GROUP and given.details.zeroPoints == -1 and not given.quantizedDimension
    if scales.type != schema.TensorType.FLOAT16 or data is None or not (fits and block and given.scale is None):
        raise VerificationError(f"{path}: {name} is not in groups of {GROUP} with a float16 scale each.")
    return np.frombuffer(bytes(data), "<f2").reshape(groups).astype(np.float32)


def _no_other_weights(schema: Any, model: Any, named: set[int], path: Path) -> None:
    """Every constant that has less than 16 bits has a name, and every layer that should hold codes does."""
    names_of = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = schema.TensorType
    small = (types.INT8, types.INT4, types.INT2, types.UINT8, types.UINT4)
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            if tensor.type in small and model.buffers[tensor.buffer].data is not None and tensor.buffer not in named:
                raise VerificationError(f"{path}: holds int8 constants that are not the student's.")
        for operator in subgraph.operators:
            if names_of.get(model.operatorCodes[operator.opcodeIndex].builtinCode) not in _WEIGHTED:
                continue
            for index in operator.inputs[:2]:
                buffer = subgraph.tensors[index].buffer
                # scores of attention are a product of two activations: no constant there
                if model.buffers[buffer].data is not None and buffer not in named:
                    raise VerificationError(f"{path}: a layer came out of the converter without its integer weight.")


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and np.array_equal(a, b)
