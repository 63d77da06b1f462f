"""An .onnx file as untrusted bytes: parsed, checked for what it must not hold, its constants by name."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import ForeignFile, VerificationError
from edgedistill.exporters.onnx.packing import PRODUCER, unpack_int4

_DOMAINS = ("", "ai.onnx")
_MOST_BYTES = 2**31 - 1  # of one protobuf
_SHOWN = 8  # axes of a shape that an error shows


class Contents(NamedTuple):
    """A parsed file; nodes by what they read and write, constants of the graph by name."""

    path: Path
    graph: Any
    constants: dict[str, Any]
    readers: dict[str, list[Any]]
    makers: dict[str, Any]

    def array(self, name: str) -> NDArray[Any]:
        """A constant's numbers, 4-bit ones as int8: the file's own bytes, which are as many as its shape says.

        Raises:
            VerificationError: if it is missing, of a type that no file of ours has, or not as long as it says.
        """
        tensor = self.constants.get(name)
        if tensor is None:
            raise VerificationError(f"{self.path}: {name} is missing.")
        shape, stored, count = tuple(tensor.dims), tensor.raw_data, prod(tensor.dims)
        kind = _types().get(tensor.data_type)
        wanted = -1 if kind is None else -(-count * kind.bits // 8)
        wrong = VerificationError(
            f"{self.path}: {name[:80]} of type {tensor.data_type} and shape {list(shape[:_SHOWN])} has {len(stored)} "
            "bytes."
        )
        if kind is None or min(shape, default=0) < 0 or len(stored) != wanted:
            raise wrong
        flat = unpack_int4(stored, count) if kind.bits == 4 else np.frombuffer(stored, kind.numbers)
        try:
            return flat.reshape(shape)
        except ValueError:  # more axes than numpy has, or an array of nothing that is beyond all memory
            raise wrong from None


class _Type(NamedTuple):
    bits: int
    numbers: str


def _types() -> dict[int, _Type]:
    """The types of constants that files of ours have, by ONNX's number."""
    from onnx import TensorProto

    return {
        TensorProto.FLOAT: _Type(32, "<f4"),
        TensorProto.INT4: _Type(4, "i1"),
        TensorProto.INT8: _Type(8, "i1"),
        TensorProto.UINT8: _Type(8, "u1"),
        TensorProto.INT32: _Type(32, "<i4"),
        TensorProto.INT64: _Type(64, "<i8"),
        TensorProto.BOOL: _Type(8, "?"),
    }


def open_file(path: Path) -> Contents:
    """Read and parse a file of this package.

    Raises:
        VerificationError: if it is missing, foreign, damaged, needs another file, or holds more than plain operators.
    """
    model = parse(path, read(path))
    if model.producer_name != PRODUCER:
        raise ForeignFile(f"{path}: not an .onnx file of this package.")
    if [(item.domain in _DOMAINS, item.version > 0) for item in model.opset_import] != [(True, True)]:
        raise ForeignFile(f"{path}: does not name one version of ONNX's own operators.")
    graph = model.graph
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in graph.node if n.domain not in _DOMAINS})
    if foreign:
        raise ForeignFile(f"{path}: holds operators that are not ONNX's own: {', '.join(foreign)}.")
    if model.functions or model.training_info or graph.sparse_initializer or any(_is_nested(n) for n in graph.node):
        raise ForeignFile(f"{path}: holds functions, inner graphs or sparse constants: not ours.")
    constants = {tensor.name: tensor for tensor in graph.initializer}
    if len(constants) < len(graph.initializer) or constants.keys() & {port.name for port in graph.input}:
        raise ForeignFile(f"{path}: gives two values the same name.")
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return Contents(path, graph, constants, readers, {name: node for node in graph.node for name in node.output})


def read(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        VerificationError: if it cannot be read.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ForeignFile(f"{path}: not an .onnx file: none has more than 2 GiB.")
        return path.read_bytes()
    except OSError as error:
        raise ForeignFile(f"{path}: cannot be read: {error.strerror}.") from None


def parse(path: Path, data: bytes) -> Any:
    """The `onnx.ModelProto` in `data`, the bytes of `path`.

    Raises:
        VerificationError: if they are none, or refer to a file beside them: that could be any file of the machine.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ForeignFile(f"{path}: not an .onnx file, or a damaged one ({error}). Export it again.") from None
    for message, texts in _messages(model):
        if message.DESCRIPTOR.name == "TensorProto" and (
            message.data_location == onnx.TensorProto.EXTERNAL or message.external_data
        ):
            raise ForeignFile(f"{path}: keeps numbers in another file. Export it again.")
        if any(isinstance(text, bytes) for text in texts):
            raise ForeignFile(f"{path}: holds a name that is not UTF-8: damaged. Export it again.")
    return model


def attributes(node: Any) -> dict[str, Any]:
    """A node's integer attributes by name."""
    return {attribute.name: attribute.i for attribute in node.attribute}


def _messages(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """A message and all in it, each with its own texts: tensors of attributes, inner graphs, sparse ones, functions.

    ONNX's texts are not checked when they are parsed: one that is not UTF-8 comes as bytes.
    """
    waiting = [model]
    while waiting:
        message = waiting.pop()
        inner: list[Any] = []
        texts: list[Any] = []
        for field, value in message.ListFields():
            items = value if field.is_repeated else (value,)
            if field.message_type is not None:
                inner += items
            elif field.type == field.TYPE_STRING:
                texts += items
        yield message, texts
        waiting += reversed(inner)


def _is_nested(node: Any) -> bool:
    return any(a.HasField("g") or a.graphs or a.HasField("sparse_tensor") or a.tensors for a in node.attribute)
