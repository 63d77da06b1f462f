"""Lines of an untrusted text file, plain or gzip: bounded, UTF-8, without NUL."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from edgedistill.errors import DataError

MAX_LINE_BYTES = 1_000_000
"""The longest line, in bytes; a longer one is refused before it is read whole."""
MAX_UNPACKED_BYTES = 1_000_000_000
"""The most a packed file may unpack to."""
MAX_RATIO = 100
"""The most a packed file may grow, once past `FREE_UNPACKED_BYTES`; text of different rows packs about 5 to 1."""
FREE_UNPACKED_BYTES = 16_000_000
_LEAST_LINE_BYTES = 64  # an empty line costs time too: tens of millions of them fit into a few kB
_BOM = b"\xef\xbb\xbf"


def unpacked_limit(packed_bytes: int) -> int:
    """The most bytes that a compressed file of this size may unpack to."""
    return min(MAX_UNPACKED_BYTES, max(FREE_UNPACKED_BYTES, MAX_RATIO * packed_bytes))


def text_lines(path: Path, packed: bool) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and the lines with their ends; a byte-order mark at the start is dropped.

    Raises:
        DataError: with file and line, if the file cannot be read or unpacked, is not UTF-8, holds a NUL character, or
            breaks one of this module's limits.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            for number, line in _raw_lines(path, raw, packed):
                yield number, _decode(line, f"{path}:{number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}:{number + 1}: not a whole gzip file ({error}). Pack it again, or drop '.gz' from the name "
            "if it is plain text."
        ) from None
    except OSError as error:
        raise DataError(f"{path}:{number + 1}: cannot be read ({error.strerror}).") from None


def _raw_lines(path: Path, raw: IO[bytes], packed: bool) -> Iterator[tuple[int, bytes]]:
    stream: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if packed else raw
    limit, total, number = unpacked_limit(path.stat().st_size), 0, 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{path}:{number}: line of more than {MAX_LINE_BYTES:,} bytes. Allowed: one row a line, up to that "
                "size. Shorten the text, or check that the file has line ends."
            )
        total += max(len(line), _LEAST_LINE_BYTES)
        if packed and total > limit:
            raise DataError(
                f"{path}:{number}: unpacks to more than {limit:,} bytes, too much for a file of its size. "
                "Give the file unpacked if this is intended."
            )
        yield number, line.removeprefix(_BOM) if number == 1 else line


def _decode(line: bytes, place: str) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8: byte {error.start + 1} of the line is 0x{line[error.start]:02x}. "
            "Save the file as UTF-8."
        ) from None
    if "\0" in text:
        raise DataError(
            f"{place}: NUL character at position {text.index(chr(0)) + 1}. Save the file as UTF-8 text (not UTF-16), "
            "or remove the character."
        )
    return text
