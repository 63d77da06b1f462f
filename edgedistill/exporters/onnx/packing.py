"""From a converted graph to the bytes of the file: 4-bit codes packed, nothing in it that does not compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import StageError
from edgedistill.quant.frozen import FrozenStudent

PRODUCER = "edgedistill"
CODES, SCALES = ".codes", ".scales"
IR_VERSION = 10  # the one that brought 4-bit integers
MOST_BYTES = 2**31 - 1  # protobuf's own limit


def pack(model: Any, frozen: FrozenStudent) -> bytes:
    """The file. No versions, no names of operators, no stack traces: the same student gives the same bytes.

    Raises:
        StageError: if it would be larger than a protobuf may be.
    """
    import onnx

    file = onnx.ModelProto(ir_version=IR_VERSION, producer_name=PRODUCER)
    for opset in model.opset_import:
        file.opset_import.add(domain=opset.domain, version=opset.version)
    graph, old = file.graph, model.graph
    graph.name = old.name
    narrow = {f"{name}{CODES}" for name, grid in frozen.grids().items() if grid.bits == 4}
    for node in _widened(old.node, narrow):
        new = graph.node.add(
            op_type=node.op_type, domain=node.domain, input=node.input, output=node.output, attribute=node.attribute
        )
        for attribute in new.attribute:
            attribute.ClearField("doc_string")
    for tensor in sorted(old.initializer, key=lambda item: item.name):
        kind, data = tensor.data_type, tensor.raw_data
        if tensor.name in narrow:
            kind, data = onnx.TensorProto.INT4, pack_int4(np.frombuffer(data, np.int8))
        graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=kind, raw_data=data)
    for ports, values in ((graph.input, old.input), (graph.output, old.output)):
        for value in values:
            ports.add(name=value.name, type=value.type)
    if file.ByteSize() > MOST_BYTES:
        raise StageError(f"An .onnx file holds at most 2 GB, this student is {file.ByteSize() / 1e6:.0f} MB.")
    out: bytes = file.SerializeToString(deterministic=True)
    return out


def _widened(nodes: Iterable[Any], narrow: Set[str]) -> Iterator[Any]:
    """The nodes, with a Cast to int8 before static layers that read 4-bit codes, which are those in `narrow`.

    ONNX Runtime computes the Cast when it loads the file, and then makes integer products of the layer.
    """
    import onnx

    cast: set[str] = set()
    for node in nodes:
        for place, name in enumerate(node.input):
            if name in narrow and node.op_type == "DequantizeLinear" and len(node.input) > 2:
                wide = f"{name}.int8"
                if wide not in cast:
                    cast.add(wide)
                    yield onnx.helper.make_node("Cast", [name], [wide], to=onnx.TensorProto.INT8)
                node.input[place] = wide
        yield node


def pack_int4(codes: NDArray[np.int8]) -> bytes:
    """Two codes in -8..7 to a byte, the first in the low half; an odd number of them ends with a zero half."""
    halves = np.zeros(codes.size + codes.size % 2, np.uint8)
    halves[: codes.size] = codes.reshape(-1).astype(np.uint8) & 0xF
    return (halves[::2] | halves[1::2] << 4).tobytes()


def unpack_int4(data: bytes, count: int) -> NDArray[np.int8]:
    """The first `count` codes of packed bytes."""
    packed = np.frombuffer(data, np.uint8)
    halves = np.stack([packed & 0xF, packed >> 4], 1).reshape(-1)[:count].astype(np.int8)
    out: NDArray[np.int8] = np.where(halves > 7, halves - 16, halves).astype(np.int8)
    return out
