"""The bytes of a GGUF file, read as untrusted input: every count and size is held against what is left of the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import ForeignFile

# A scalar keeps its width as a numpy scalar; an array of strings is a list.
Value = bool | str | np.number[Any] | list[str] | NDArray[Any]
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
NUMBERS: dict[int, np.dtype[Any]] = {
    number: np.dtype(code)
    for number, code in enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "", "", "<u8", "<i8", "<f8"))
    if code
}
F32, Q4_0, Q8_0 = 0, 2, 8
# ggml's tensor types: weights in a block, bytes of a block
BLOCKS = {F32: (1, 4), 1: (1, 2), Q4_0: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), Q8_0: (32, 34), 30: (1, 2)}
BLOCKS |= {10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210)}  # Q2_K to Q6_K
_ALIGNMENT, _DIMENSIONS = 32, 4


class Stored(NamedTuple):
    """One tensor: its shape with rows first, as ours, ggml's type and its bytes."""

    shape: tuple[int, ...]
    kind: int
    data: NDArray[np.uint8]


class Parsed(NamedTuple):
    """A whole file."""

    metadata: dict[str, Value]
    tensors: dict[str, Stored]


class _Cursor:
    """A place in the file that only moves forward and never past the end."""

    def __init__(self, data: bytes, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def fail(self, what: str) -> ForeignFile:
        return ForeignFile(f"{self.path}: damaged GGUF file: {what} (at byte {self.at}). Export it again.")

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise self.fail(f"it ends where {size} more bytes should be")
        self.at += size
        return memoryview(self.data)[self.at - size : self.at]

    def number(self, code: str) -> int:
        out: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return out

    def text(self) -> str:
        raw = bytes(self.take(self.number("Q")))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("a text is not UTF-8") from None

    def value(self) -> Value:
        kind = self.number("I")
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array()
        if kind not in NUMBERS:
            raise self.fail(f"a value has unknown type {kind}")
        scalar = np.frombuffer(self._flags(kind, 1), NUMBERS[kind])[0]
        return bool(scalar) if kind == BOOL else scalar

    def _array(self) -> Value:
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            if count * 8 > len(self.data) - self.at:  # each text has a length of 8 bytes
                raise self.fail(f"an array of {count} texts does not fit")
            return [self.text() for _ in range(count)]
        if kind not in NUMBERS:
            raise self.fail(f"an array has unknown type {kind}")
        return np.frombuffer(self._flags(kind, count), NUMBERS[kind])

    def _flags(self, kind: int, count: int) -> memoryview:
        raw = self.take(NUMBERS[kind].itemsize * count)
        if kind == BOOL and count and max(raw) > 1:
            raise self.fail("a truth value is neither 0 nor 1")
        return raw


def parse(path: Path) -> Parsed:
    """Metadata and tensors of a file; the tensors' bytes are views of it.

    Raises:
        ForeignFile: if it is no GGUF file, or damaged: every byte must belong to something that is listed once.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":  # what is none may be far larger than memory
                raise ForeignFile(f"{path}: not a GGUF file.")
            file.seek(0)
            data = file.read()
    except OSError as error:
        raise ForeignFile(f"{path}: cannot be read ({error.strerror}).") from None
    cursor = _Cursor(data, path)
    cursor.take(4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise ForeignFile(f"{path}: GGUF version {version}; versions 2 and 3 can be read.")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Value] = {}
    for _ in range(keys):
        key = cursor.text()
        if key in metadata:
            raise cursor.fail(f"key {key!r} occurs twice")
        metadata[key] = cursor.value()
    return Parsed(metadata, _tensors(cursor, tensors, _alignment(metadata, cursor)))


def _alignment(metadata: dict[str, Value], cursor: _Cursor) -> int:
    found = metadata.get("general.alignment", np.uint32(_ALIGNMENT))
    if not isinstance(found, np.uint32) or found == 0 or found & (found - 1):
        raise cursor.fail(f"general.alignment = {found!r} is no power of two")
    return int(found)


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, Stored]:
    infos: dict[str, tuple[tuple[int, ...], int, int, int]] = {}
    offset = end = 0
    for _ in range(count):
        name, dimensions = cursor.text(), cursor.number("I")
        if name in infos:
            raise cursor.fail(f"tensor {name!r} occurs twice")
        if not 1 <= dimensions <= _DIMENSIONS:
            raise cursor.fail(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
        kind, start = cursor.number("I"), cursor.number("Q")
        if kind not in BLOCKS:
            raise cursor.fail(f"tensor {name!r} has type {kind}, which is not read here")
        weights, size = BLOCKS[kind]
        if 0 in shape or shape[-1] % weights:
            raise cursor.fail(f"tensor {name!r} {list(shape)} is not made of blocks of {weights}")
        # llama.cpp demands this too: one after the other, each at the next aligned byte
        if start != offset:
            raise cursor.fail(f"tensor {name!r} lies at {start}, expected at {offset}")
        bytes_ = prod(shape) // weights * size
        infos[name] = shape, kind, start, bytes_
        end, offset = start + bytes_, _aligned(start + bytes_, alignment)
    first = _aligned(cursor.at, alignment) if infos else cursor.at
    if not first + end <= len(cursor.data) <= first + offset:
        raise cursor.fail(f"its tensors take {end} bytes from byte {first} on, the file has {len(cursor.data)}")
    whole = np.frombuffer(cursor.data, np.uint8)
    return {
        name: Stored(shape, kind, whole[first + start : first + start + size])
        for name, (shape, kind, start, size) in infos.items()
    }


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
