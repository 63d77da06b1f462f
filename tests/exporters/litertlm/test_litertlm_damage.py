"""Bundles that lie: one clear error each, and little memory."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgedistill.errors import ForeignFile, VerificationError
from edgedistill.exporters import litertlm
from edgedistill.exporters.litertlm.parsing import HEADER, HEADER_END, METADATA, MODEL, TOKENIZER, parse, sections
from edgedistill.quant import FrozenStudent

Made = tuple[FrozenStudent, Path]
Change = Callable[[bytearray, dict[int, tuple[int, int]]], Any]


def header_end(data: bytes | bytearray) -> int:
    return int.from_bytes(data[HEADER_END : HEADER_END + 8], "little")


def lie(old: int, new: int) -> Change:
    """Replace a 64-bit number of the header."""

    def change(data: bytearray, places: dict[int, tuple[int, int]]) -> None:
        at = bytes(data).index(struct.pack("<Q", old), HEADER, header_end(data))
        struct.pack_into("<Q", data, at, new)

    return change


def changes(data: bytes) -> dict[str, Change]:
    places = sections(data[HEADER : header_end(data)], header_end(data), len(data))
    model, metadata, tokenizer = places[MODEL], places[METADATA], places[TOKENIZER]

    def put(at: int, new: bytes) -> Change:
        def change(data: bytearray, places: dict[int, tuple[int, int]]) -> None:
            data[at : at + len(new)] = new

        return change

    root = HEADER + struct.unpack_from("<I", data, HEADER)[0]
    fields = root - struct.unpack_from("<i", data, root)[0]
    bomb = struct.pack("<Q", 2**40) + zlib.compress(bytes(10_000))
    return {
        "not a .litertlm file": put(0, b"LITERTLX"),
        "version 9": put(8, struct.pack("<I", 9)),
        "a header that ends": put(HEADER_END, struct.pack("<Q", 2**60)),
        "leaves the header": put(HEADER, struct.pack("<I", 2**31)),
        "a table is not one": put(fields, b"\3\0"),
        "section from byte": lie(model[1], 2**62),
        f"section from byte {model[0] + 1}": lie(model[0], model[0] + 1),
        "one behind the other": lie(model[0], metadata[0]),
        "something between": put(metadata[1] + 1, b"hidden"),
        "as long as it says": put(tokenizer[0], struct.pack("<Q", 17)),
        f"tokenizer of {2**40} bytes": put(tokenizer[0], bomb),
        "does not unpack": put(tokenizer[0] + 12, bytes(range(60))),
        r"the model in it: damaged \.tflite": put(model[0] + 4, b"XXXX"),
        r"one behind the other up": lambda data, places: data.extend(b"behind the end"),
        r"from byte \d+ to \d+ of": lambda data, places: data.__delitem__(slice(model[1] - 9, None)),
    }


def test_every_lie_is_one_clear_error(made: Made, tmp_path: Path) -> None:
    whole = made[1].read_bytes()
    spoiled = tmp_path / "spoiled.litertlm"
    for told, change in changes(whole).items():
        data = bytearray(whole)
        change(data, {})
        assert data != whole
        spoiled.write_bytes(data)
        tracemalloc.start()
        with pytest.raises(VerificationError, match=told) as error:
            litertlm.read_back(spoiled)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert str(error.value).startswith(str(spoiled)), told
        assert "\n" not in str(error.value)
        assert peak < 64e6
        with pytest.raises(ForeignFile, match=f"{told}|a hash of all that follows"):
            litertlm.load(spoiled)


def test_a_tokenizer_that_unpacks_without_end_stops_at_its_length(made: Made, tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte, said to be short."""
    whole = bytearray(made[1].read_bytes())
    places = sections(bytes(whole[HEADER : header_end(whole)]), header_end(whole), len(whole))
    begin, end = places[TOKENIZER]
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(bytes(2**16)) for _ in range(20))
    bomb = (struct.pack("<Q", 1000) + packed + packer.flush())[: end - begin]
    whole[begin : begin + len(bomb)] = bomb
    spoiled = tmp_path / "bomb.litertlm"
    spoiled.write_bytes(whole)
    with pytest.raises(VerificationError, match="as long as it says"):
        litertlm.read_back(spoiled)


def test_every_cut_and_every_changed_byte_of_the_header_is_refused_or_means_the_same(
    made: Made, tmp_path: Path
) -> None:
    whole, original = made[1].read_bytes(), parse(made[1])
    spoiled = tmp_path / "cut.litertlm"
    for length in (0, 7, 31, 40, header_end(whole) - 1, header_end(whole), 20_000, len(whole) - 1):
        spoiled.write_bytes(whole[:length])
        with pytest.raises(VerificationError):
            litertlm.read_back(spoiled)
    kept = 0
    for at in range(HEADER_END, header_end(whole)):
        data = bytearray(whole)
        data[at] ^= 0xFF
        spoiled.write_bytes(data)
        try:
            assert parse(spoiled).model == original.model, at  # what else may differ, `verify` compares
            kept += 1
        except VerificationError:
            continue
    assert kept < 0.7 * header_end(whole)


def test_an_absent_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.litertlm", tmp_path):
        with pytest.raises(VerificationError, match="cannot be read"):
            litertlm.read_back(path)
