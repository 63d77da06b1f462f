"""Where the parts of a .litertlm are, asked of the file's own bytes before any library follows them.

The file begins with `LITERTLM`, three 32-bit version numbers, and at byte 24 the 64-bit end of its header, a flatbuffer
from byte 32 on (`litertlm_header_schema.fbs` of LiteRT-LM) that lists sections: what they hold, where they begin, on
blocks of 16 KiB, and where they end. A bundle of this package has three, one of each kind, with zeros between them.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edgedistill.errors import ForeignFile

MAGIC, HEADER_END, HEADER, BLOCK = b"LITERTLM", 24, 32, 16384
VERSION = 1
MODEL, METADATA, TOKENIZER = 3, 5, 6  # AnySectionDataType: TFLiteModel, LlmMetadataProto, HF_Tokenizer_Zlib
# More than any real one, and little memory.
MOST_HEADER_BYTES, MOST_METADATA_BYTES, MOST_TOKENIZER_BYTES = 2**16, 2**22, 2**27
_MOST_SECTIONS = 64


class Bundle(NamedTuple):
    """A file whose sections are where it says: `places` has the first byte of each kind and the one behind its last, in
    the header's order; `header` is what lies between byte `HEADER_END` and the first of them.
    """

    header: bytes
    metadata: bytes
    tokenizer: bytes
    places: dict[int, tuple[int, int]]

    @property
    def model(self) -> tuple[int, int]:
        """Where the .tflite is."""
        return self.places[MODEL]


def parse(path: Path) -> Bundle:
    """Read everything but the model.

    Raises:
        ForeignFile: if the file is no bundle of this package, or damaged.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(HEADER)
            if len(head) < HEADER or not head.startswith(MAGIC):
                raise ValueError("not a .litertlm file")
            version, (end,) = struct.unpack_from("<I", head, len(MAGIC))[0], struct.unpack_from("<Q", head, HEADER_END)
            if version != VERSION:
                raise ValueError(f"version {version} of the format, known is {VERSION}")
            if not HEADER < end <= min(size, HEADER + MOST_HEADER_BYTES):
                raise ValueError(f"a header that ends at byte {end} of {size}")
            places = sections(file.read(end - HEADER), end, size)
            last = end
            for begin, stop in sorted(places.values()):
                file.seek(last)
                if any(file.read(begin - last)):
                    raise ValueError("something between its sections")
                last = stop
            metadata = _bytes(file, places[METADATA], MOST_METADATA_BYTES)
            tokenizer = _inflated(_bytes(file, places[TOKENIZER], MOST_TOKENIZER_BYTES))
            header = _bytes(file, (HEADER_END, min(begin for begin, _ in places.values())), 2 * MOST_HEADER_BYTES)
    except OSError as error:
        raise ForeignFile(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, struct.error) as error:
        raise ForeignFile(f"{path}: not a bundle of this package, or damaged: {error}. Export it again.") from None
    return Bundle(header, metadata, tokenizer, places)


def sections(data: bytes, header_end: int, size: int) -> dict[int, tuple[int, int]]:
    """Kind to place of each section, in the order of the header `data`, which ends at `header_end`.

    Raises:
        ValueError: saying what is wrong.
    """
    header = _Header(data)
    listed = header.table(header.target(0)).get(1)
    objects = header.table(header.target(listed)).get(0) if listed is not None else None
    if objects is None:
        raise ValueError("a header without sections")
    found: dict[int, tuple[int, int]] = {}
    for at in header.tables(objects):
        fields = header.table(at)
        if not {1, 2, 3} <= fields.keys():
            raise ValueError("a section without a place or a kind")
        kind, begin, end = header.number("<B", fields[3]), *(header.number("<Q", fields[n]) for n in (1, 2))
        if kind in found or kind not in (MODEL, METADATA, TOKENIZER):
            raise ValueError(f"a section of kind {kind}, which bundles of this package do not have or have once")
        if begin % BLOCK or not header_end <= begin < end <= size:
            raise ValueError(f"a section from byte {begin} to {end} of {size}")
        found[kind] = begin, end
    missing = sorted({MODEL, METADATA, TOKENIZER} - found.keys())
    if missing:
        raise ValueError(f"no section of kind {missing[0]}")
    places = sorted(found.values())
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(places)]
    if any(not 0 <= gap < BLOCK for gap in (places[0][0] - header_end, *gaps)) or places[-1][1] != size:
        raise ValueError("sections that are not one behind the other up to the end")
    return found


class _Header:
    """A flatbuffer of which nothing is believed."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def number(self, code: str, at: int) -> int:
        if not 0 <= at <= len(self.data) - struct.calcsize(code):
            raise ValueError("an offset leaves the header")
        return int(struct.unpack_from(code, self.data, at)[0])

    def target(self, at: int) -> int:
        """Where the offset at `at` leads."""
        return at + self.number("<I", at)

    def table(self, at: int) -> dict[int, int]:
        """Where each field that the table at `at` has begins, by number."""
        places = at - self.number("<i", at)
        length = self.number("<H", places)
        if length < 4 or length % 2:
            raise ValueError("a table is not one")
        offsets = {n: self.number("<H", places + 4 + 2 * n) for n in range((length - 4) // 2)}
        return {n: at + offset for n, offset in offsets.items() if offset}

    def tables(self, at: int) -> list[int]:
        """Where the tables of a vector are."""
        start = self.target(at)
        count = self.number("<I", start)
        if count > _MOST_SECTIONS:
            raise ValueError(f"{count} sections")
        return [self.target(start + 4 + 4 * n) for n in range(count)]


def _bytes(file: BinaryIO, place: tuple[int, int], most: int) -> bytes:
    begin, end = place
    if end - begin > most:
        raise ValueError(f"a section of {end - begin} bytes, where {most} are enough")
    file.seek(begin)
    return file.read(end - begin)


def _inflated(data: bytes) -> bytes:
    """A tokenizer: its length in 8 bytes, then zlib; the length is believed up to what real ones have."""
    (length,) = struct.unpack_from("<Q", data)
    if length > MOST_TOKENIZER_BYTES:
        raise ValueError(f"a tokenizer of {length} bytes")
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data[8:], length + 1)
    except zlib.error as error:
        raise ValueError(f"a tokenizer that does not unpack ({error})") from None
    if len(found) != length or not stream.eof or stream.unused_data:
        raise ValueError("a tokenizer that is not as long as it says")
    return found
