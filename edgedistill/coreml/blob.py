"""The weight file of a package: 64-byte records, checked against the file's length before a byte of data is read.

Layout, all little-endian: a header of 64 bytes (uint32 count, uint32 version 2), then per tensor a record of 64 bytes
(uint32 sentinel, uint32 data type, uint64 size in bytes, uint64 offset of the data, uint64 unused bits at its end) and
its data. Elements of less than a byte are packed least significant bit first and may straddle bytes.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import ForeignFile

_RECORD = struct.Struct("<IIQQQ")
_RECORD_BYTES = 64
_SENTINEL = 0xDEADBEEF
_VERSION = 2
# The file's own numbering of data types.
_TYPES = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
_BITS_OF_SUB_BYTE = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "int4": 4, "uint6": 6}
_NUMPY: dict[str, np.dtype[Any]] = {
    "fp16": np.dtype("<f2"),
    "fp32": np.dtype("<f4"),
    "fp64": np.dtype("<f8"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "int16": np.dtype("<i2"),
    "uint16": np.dtype("<u2"),
    "int32": np.dtype("<i4"),
    "uint32": np.dtype("<u4"),
    "int64": np.dtype("<i8"),
    "uint64": np.dtype("<u8"),
    "bool": np.dtype("?"),
}


def bits(dtype: str) -> int:
    """Bits an element of `dtype` takes in the file: 1 for uint1, 4 for int4, 16 for fp16."""
    return _BITS_OF_SUB_BYTE.get(dtype) or _NUMPY[dtype].itemsize * 8


def stored_bytes(dtype: str, count: int) -> int:
    """Bytes that `count` elements of `dtype` take in the file."""
    return -(-count * bits(dtype) // 8)


def decode(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The array that packed bytes hold: sub-byte types come out as int8 or uint8, every other as itself.

    Raises:
        ForeignFile: if the number of bytes is not what `shape` and `dtype` need.
    """
    count = math.prod(shape)
    if data.size != stored_bytes(dtype, count):
        raise ForeignFile(
            f"A {dtype} constant of shape {list(shape)} needs {stored_bytes(dtype, count)} bytes; the package holds "
            f"{data.size}."
        )
    if dtype in _BITS_OF_SUB_BYTE:
        flat: NDArray[Any] = unpack(data, _BITS_OF_SUB_BYTE[dtype], count, signed=dtype == "int4")
    else:
        flat = data.view(_NUMPY[dtype])
    try:
        return flat.reshape(shape)
    except ValueError:  # an array of nothing whose other sizes are beyond all memory
        raise ForeignFile(f"A {dtype} constant has the shape {list(shape)}.") from None


def unpack(data: NDArray[np.uint8], width: int, count: int, *, signed: bool = False) -> NDArray[Any]:
    """`count` integers of `width` bits (1, 2, 3, 4 or 6), packed least significant bit first: uint8 or int8 [count]."""
    group = math.lcm(width, 8) // 8  # bytes after which the packing starts afresh: 1 or 3
    padded = np.zeros(-(-data.size // group) * group, np.uint8)
    padded[: data.size] = data
    words = np.zeros(padded.size // group, np.uint32)
    for index in range(group):
        words |= padded[index::group].astype(np.uint32) << np.uint32(8 * index)
    shifts = np.arange(0, group * 8, width, dtype=np.uint32)
    values = ((words[:, None] >> shifts) & np.uint32(2**width - 1)).astype(np.uint8).reshape(-1)[:count]
    if not signed:
        return values
    half = 1 << (width - 1)
    return (values ^ half).astype(np.int8) - np.int8(half)


@dataclass(frozen=True)
class Record:
    """Where the data of one tensor lies in the file."""

    dtype: str
    offset: int
    size_bytes: int


class WeightFile:
    """A weight file that has a valid header; records are looked up by their offset."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            ForeignFile: if the file is missing, not a regular file, or not a weight file of version 2.
        """
        self.path = path
        if not path.is_file():  # also keeps a named pipe from being opened, which would wait for ever
            raise ForeignFile(f"{path}: the model refers to this weight file, and it is not there.")
        self.size_bytes = path.stat().st_size
        head = self._read(0, _RECORD_BYTES, "its header")
        _, version = struct.unpack_from("<II", head)
        if version != _VERSION:
            raise ForeignFile(f"{path}: not a Core ML weight file of version {_VERSION} (it says {version}).")

    def record(self, offset: int, dtype: str, count: int) -> Record:
        """The record at `offset`, checked to be `count` elements of `dtype` that lie inside the file.

        Raises:
            ForeignFile: if it is not.
        """
        head = self._read(offset, _RECORD_BYTES, f"the record at byte {offset}")
        sentinel, number, size_bytes, start, unused_bits = _RECORD.unpack_from(head)
        where = f"{self.path}: the record at byte {offset}"
        if sentinel != _SENTINEL:
            raise ForeignFile(f"{where} starts with {sentinel:#010x}, not {_SENTINEL:#010x}: no record is there.")
        if _TYPES.get(number) != dtype:
            raise ForeignFile(f"{where} holds {_TYPES.get(number, number)}; the model says {dtype}.")
        if size_bytes != stored_bytes(dtype, count):
            raise ForeignFile(f"{where} has {size_bytes} bytes; {count} elements of {dtype} take another number.")
        if dtype in _BITS_OF_SUB_BYTE and unused_bits != size_bytes * 8 - count * bits(dtype):
            raise ForeignFile(f"{where} leaves {unused_bits} bits unused; {count} elements of {dtype} do not.")
        if start + size_bytes > self.size_bytes:
            raise ForeignFile(
                f"{where} says its data ends at byte {start + size_bytes}; the file ends at {self.size_bytes}."
            )
        return Record(dtype, start, size_bytes)

    def data(self, record: Record) -> NDArray[np.uint8]:
        """The record's bytes, a fresh writable array.

        Raises:
            ForeignFile: if the file has become shorter since it was opened.
        """
        return np.frombuffer(self._read(record.offset, record.size_bytes, "a tensor"), np.uint8)

    def _read(self, offset: int, count: int, what: str) -> bytearray:
        if offset + count > self.size_bytes:
            raise ForeignFile(
                f"{self.path}: {what} would end at byte {offset + count}; the file ends at {self.size_bytes}."
            )
        data = bytearray(count)
        with self.path.open("rb") as file:
            file.seek(offset)
            if file.readinto(data) != count:
                raise ForeignFile(f"{self.path}: {what} is cut off; the file changed while it was read.")
        return data
