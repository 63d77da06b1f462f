"""Types and constants of the program's messages, checked while they are read."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.coreml.blob import WeightFile, decode
from edgedistill.coreml.package import inside
from edgedistill.coreml.program import Constant, TensorType
from edgedistill.errors import ForeignFile

_DTYPES = {
    1: "bool",
    2: "string",
    10: "fp16",
    11: "fp32",
    12: "fp64",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
# The field of a TensorValue that holds each type; every other type is written as packed bytes.
_FIELDS = {
    "fp32": "floats",
    "fp64": "doubles",
    "int32": "ints",
    "int16": "ints",
    "uint16": "ints",
    "int64": "longInts",
    "uint64": "longInts",
    "bool": "bools",
    "string": "strings",
}
_NUMPY = {
    "fp32": np.float32,
    "fp64": np.float64,
    "int32": np.int32,
    "int16": np.int16,
    "uint16": np.uint16,
    "int64": np.int64,
    "uint64": np.uint64,
    "bool": np.bool_,
}
_MODEL_PATH = "@model_path"
_HIGHEST_RANK = 16


def tensor_type(where: str, value_type: Any) -> TensorType:
    """The TensorType that a message declares; `where` starts the message of an error.

    Raises:
        ForeignFile: if it is no tensor type, or one that no version of Core ML up to iOS 18 has.
    """
    if value_type.WhichOneof("type") != "tensorType":
        raise ForeignFile(f"{where} is a {value_type.WhichOneof('type')}, not a tensor.")
    tensor = value_type.tensorType
    if tensor.dataType not in _DTYPES:
        raise ForeignFile(f"{where} has data type {tensor.dataType}, which is not known here.")
    if tensor.rank < 0:
        return TensorType(_DTYPES[tensor.dataType], None)
    if tensor.rank != len(tensor.dimensions) or tensor.rank > _HIGHEST_RANK:
        raise ForeignFile(f"{where} says rank {tensor.rank} and lists {len(tensor.dimensions)} dimensions.")
    if any(size.WhichOneof("dimension") == "unknown" and size.unknown.variadic for size in tensor.dimensions):
        return TensorType(_DTYPES[tensor.dataType], None)
    sizes = tuple(
        int(size.constant.size) if size.WhichOneof("dimension") == "constant" else None for size in tensor.dimensions
    )
    return TensorType(_DTYPES[tensor.dataType], sizes)


class ConstantReader:
    """Reads constants of one package, and holds its weight files, each opened once."""

    def __init__(self, path: Path, root: Path, folder: Path) -> None:
        self._path, self._root, self._folder = path, root, folder
        self._files: dict[str, WeightFile] = {}

    @property
    def weight_files(self) -> tuple[WeightFile, ...]:
        """The weight files that constants refer to."""
        return tuple(self._files.values())

    def constant(self, where: str, value: Any) -> Constant:
        """The constant a message holds; data in a weight file is located and its size checked, not read.

        Raises:
            ForeignFile: if type, shape and data do not agree, or the data is not in the package.
        """
        if value.type.WhichOneof("type") == "listType":
            return _list(where, value)
        declared = tensor_type(where, value.type)
        if not declared.is_static:
            raise ForeignFile(f"{where} is a constant whose shape is not known.")
        shape = tuple(size or 0 for size in declared.shape or ())
        match value.WhichOneof("value"):
            case "blobFileValue":
                file = self._file(where, value.blobFileValue.fileName)
                record = file.record(value.blobFileValue.offset, declared.dtype, math.prod(shape))
                return Constant(declared, file=file, record=record)
            case "immediateValue" if value.immediateValue.WhichOneof("value") == "tensor":
                return Constant(declared, inline=_inline(where, value.immediateValue.tensor, declared.dtype, shape))
            case _:
                raise ForeignFile(f"{where} is a constant without a value.")

    def _file(self, where: str, name: str) -> WeightFile:
        if name not in self._files:
            parts = PurePosixPath(name).parts
            if not parts or parts[0] != _MODEL_PATH or ".." in parts:
                raise ForeignFile(f"{where} lies in {name!r}; only a file of the package is read.")
            self._files[name] = WeightFile(inside(self._path, self._root, self._folder.joinpath(*parts[1:])))
        return self._files[name]


def _inline(where: str, tensor: Any, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    field = tensor.WhichOneof("value")
    if field == "bytes" and dtype not in ("string", "bool"):
        return decode(np.frombuffer(bytearray(tensor.bytes.values), np.uint8), dtype, shape)
    if field is None or field != _FIELDS.get(dtype):
        raise ForeignFile(f"{where} is a {dtype} constant written as {field or 'nothing'}.")
    values = getattr(tensor, field).values
    if len(values) != math.prod(shape):
        raise ForeignFile(f"{where} has {len(values)} values; its shape {list(shape)} needs {math.prod(shape)}.")
    if dtype == "string":
        texts = np.empty(len(values), object)  # fixed-width text would take the longest one's room for each
        texts[:] = list(values)
        return texts.reshape(shape)
    try:
        return np.array(values, _NUMPY[dtype]).reshape(shape)
    except OverflowError:
        raise ForeignFile(f"{where} has values that are no {dtype}.") from None
    except ValueError:  # of nothing, as the number of values was compared
        raise ForeignFile(f"{where} is a constant of the shape {list(shape)}.") from None


def _list(where: str, value: Any) -> Constant:
    """A list of scalars (the class labels of a classifier), as a constant of rank 1."""
    entries = value.immediateValue.list.values
    read = [_inline(where, entry.immediateValue.tensor, tensor_type(where, entry.type).dtype, ()) for entry in entries]
    if not read:
        raise ForeignFile(f"{where} is an empty list.")
    dtype = tensor_type(where, entries[0].type).dtype
    values = np.empty(len(read), object if dtype == "string" else read[0].dtype)
    values[:] = [item.item() for item in read]
    return Constant(TensorType(dtype, (len(read),)), inline=values)
