"""Write a TFLite model as few bytes as its format allows, the same bytes every time.

Signatures of different lengths are nearly the same graph. A flatbuffer refers to a table or vector by offset, and
nothing forbids two references to one place, so equal tables (a weight tensor with its scales, an operator, the shape of
an activation) are written once and referred to from every signature. Readers follow offsets and see no difference.
"""

from __future__ import annotations

import struct
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

# The schema demands this alignment of buffers (`force_align: 16`); the generated Python code does not provide it.
_BUFFER_ALIGNMENT = 16
_FILE_IDENTIFIER = b"TFL3"
_PLAIN = (int, bool, str, bytes, type(None))  # what most fields are: their own keys


class _Shared:
    """A table of the object API that is packed once per content."""

    def __init__(self, packer: Packer, table: Any) -> None:
        self.packer, self.table = packer, table

    def Pack(self, builder: flatbuffers.Builder) -> int:
        """Offset of the table, written on the first call for this content."""
        return self.packer.table(self.table)


class Packer:
    """Packs one model; keeps, for the builder it owns, where each content was written."""

    def __init__(self) -> None:
        self.builder = _Builder(1 << 16)
        self._tables: dict[Any, int] = {}

    def pack(self, model: Any) -> bytes:
        """The bytes of a `ModelT`. The model's tables are replaced by shared ones on the way: use it no more."""
        model.buffers = [_Aligned(self, buffer) for buffer in model.buffers]
        for subgraph in model.subgraphs:
            for tensor in subgraph.tensors:
                tensor.quantization = tensor.quantization and _Shared(self, tensor.quantization)
            for operator in subgraph.operators:
                operator.builtinOptions = operator.builtinOptions and _Shared(self, operator.builtinOptions)
            subgraph.tensors = [_Shared(self, tensor) for tensor in subgraph.tensors]
            subgraph.operators = [_Shared(self, operator) for operator in subgraph.operators]
        self.builder.Finish(model.Pack(self.builder), file_identifier=_FILE_IDENTIFIER)
        return bytes(self.builder.Output())

    def table(self, table: Any) -> int:
        """Offset of a table, from its first writing."""
        key = _key(table)
        if key not in self._tables:
            self._tables[key] = table.Pack(self.builder)
        return self._tables[key]


class _Aligned:
    """A buffer whose bytes start at a multiple of 16 in the file."""

    def __init__(self, packer: Packer, buffer: Any) -> None:
        self.packer, self.buffer = packer, buffer

    def Pack(self, builder: _Builder) -> int:
        """Write the bytes, then the table that points to them."""
        from ai_edge_litert import schema_py_generated as schema

        data = self.buffer.data
        vector = None if data is None else builder.write_vector(np.asarray(data, np.uint8), _BUFFER_ALIGNMENT)
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """A builder that writes equal vectors once."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._vectors: dict[tuple[int, bytes], int] = {}
        self._numbers: list[int] = []

    def CreateNumpyVector(self, x: NDArray[Any]) -> int:
        """The generated code calls this for every numpy vector."""
        return self.write_vector(x, x.dtype.itemsize)

    def write_vector(self, values: NDArray[Any], alignment: int) -> int:
        """Offset of the vector, written on the first call for these bytes."""
        payload = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        key = (values.dtype.itemsize, payload)
        if key not in self._vectors:
            self.StartVector(values.dtype.itemsize, len(values), alignment)
            self.head -= len(payload)
            self.Bytes[self.head : self.head + len(payload)] = payload
            self._vectors[key] = int(self.EndVector())
        return self._vectors[key]


def _key(value: Any) -> Any:
    """A hashable that two tables share exactly when they would be written alike."""
    if isinstance(value, _Shared):
        return _key(value.table)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list | tuple):
        return tuple(item if type(item) in _PLAIN else _key(item) for item in value)
    if hasattr(value, "Pack"):
        fields = sorted(vars(value).items())
        return type(value).__name__, *((name, item if type(item) in _PLAIN else _key(item)) for name, item in fields)
    if isinstance(value, float):  # 0.0 == -0.0, but their bytes differ
        return struct.pack("<d", value)
    return value
