"""Bundles that lie: one clear error each, and little memory."""

from __future__ import annotations

import json
import struct
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import pytest

from edgedistill.errors import ForeignFile, VerificationError
from edgedistill.exporters import litertlm
from edgedistill.exporters.litertlm.parsing import (
    BLOCK,
    HEADER,
    HEADER_END,
    METADATA,
    MODEL,
    TOKENIZER,
    Bundle,
    parse,
    sections,
)
from edgedistill.exporters.litertlm.running import engine
from edgedistill.exporters.litertlm.writing import header_of
from edgedistill.quant import FrozenStudent

UNREAD = "a tokenizer that cannot be read"
TINY = Path(__file__).parents[2] / "runners" / "tiny_decoder.litertlm"
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


def rebuilt(whole: bytes, **parts: bytes) -> bytes:
    """The bundle with other content in its sections and a header that agrees, as one who wants to deceive would."""
    places = sections(whole[HEADER : header_end(whole)], header_end(whole), len(whole))
    given = {MODEL: "model", METADATA: "metadata", TOKENIZER: "tokenizer"}
    made, moved = bytearray(whole[: min(places.values())[0]]), {}
    for kind, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
        made += bytes(-len(made) % BLOCK)
        start = len(made)
        made += parts.get(given[kind], whole[begin:end])
        moved[kind] = start, len(made)
    with tempfile.TemporaryFile() as file:
        file.write(made)
        made[HEADER_END : min(places.values())[0]] = header_of(file, {kind: moved[kind] for kind in places})
    return bytes(made)


def packed(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + zlib.compress(text)


def hostile(whole: bytes) -> dict[str, tuple[str, bytes]]:
    """Bundles of which every section is where it should be; LiteRT-LM 0.18.1 ends its process on most of them."""
    bundle = parse_bytes(whole)
    headless = json.dumps(json.loads(bundle.tokenizer) | {"model": None}).encode()
    flipped = bytearray(whole)
    flipped[150] ^= 0x40  # in an offset behind the places of the sections
    tiny = (Path(__file__).parents[2] / "devices" / "tiny_static.tflite").read_bytes()
    return {
        "header": ("not the one of its content", bytes(flipped)),
        "one byte of the model": ("not the one of its content", whole[:-2000] + b"\xff" + whole[-1999:]),
        "tokenizer of nothing": (UNREAD, rebuilt(whole, tokenizer=packed(b""))),
        "tokenizer of another kind": (UNREAD, rebuilt(whole, tokenizer=packed(b"{}"))),
        "tokenizer without end": (UNREAD, rebuilt(whole, tokenizer=packed(b"[" * 100_000))),
        "tokenizer without a model": (UNREAD, rebuilt(whole, tokenizer=packed(headless))),
        "tokenizer that is no text": (UNREAD, rebuilt(whole, tokenizer=packed(b"\xff\xfe{}"))),
        "metadata of noise": ("metadata", rebuilt(whole, metadata=b"\x12" * 200)),
        "metadata cut off": ("metadata", rebuilt(whole, metadata=bundle.metadata[:-9])),
        "metadata of nothing": ("metadata without", rebuilt(whole, metadata=b"\x28\x1e")),
        "metadata of another token": ("names a token", rebuilt(whole, metadata=other_stop(bundle.metadata))),
        "another model": ("no decoder", rebuilt(whole, model=tiny)),
        "no model": ("the model in it", rebuilt(whole, model=b"\0\0\0\0TFL3" + bytes(4000))),
    }


def other_stop(metadata: bytes) -> bytes:
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    message: Any = llm_metadata_pb2.LlmMetadata.FromString(metadata)
    message.stop_tokens[0].token_ids.ids[0] = 10**6
    return bytes(message.SerializeToString(deterministic=True))


def parse_bytes(whole: bytes) -> Bundle:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.litertlm"
        path.write_bytes(whole)
        return parse(path)


def test_what_would_end_litert_lms_process_is_not_given_to_it(tmp_path: Path) -> None:
    """The engine lives in this very process: a case that got there would end the test run."""
    whole, path = TINY.read_bytes(), tmp_path / "hostile.litertlm"
    assert rebuilt(whole) == whole
    for case, (told, data) in hostile(whole).items():
        path.write_bytes(data)
        with pytest.raises(ForeignFile, match=told) as error, engine(path):
            pytest.fail(case)
        assert str(error.value).startswith(str(path)), case
        assert "\n" not in str(error.value)
        with pytest.raises(ForeignFile, match=told):
            litertlm.audit(path)
    with engine(TINY) as opened:
        assert opened.tokenize("the dog")


@pytest.mark.parametrize("case", ["header", "tokenizer of another kind", "metadata of noise", "another model"])
def test_a_bundle_that_litert_lm_cannot_load_is_wrong_input_of_bench(
    cli: Callable[..., Any], tmp_path: Path, case: str
) -> None:
    path = tmp_path / "hostile.litertlm"
    path.write_bytes(hostile(TINY.read_bytes())[case][1])
    done = cli("bench", path, "--launches", 1, "--prompt-tokens", 8, "--answer-tokens", 2, "--json")
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "ForeignFile"


# Each file in a process of its own, forked from one that has the libraries, with a gigabyte more of address space and
# a minute: it must answer, or say what is wrong.
FUZZ = """
import os, random, resource, signal, sys
from pathlib import Path
from fuzzing import damaged
from edgedistill.errors import ForeignFile, StageError
from edgedistill.exporters import litertlm
from edgedistill.exporters.litertlm.running import engine
litertlm.read_back(Path(sys.argv[1]))
source, work, chance = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), random.Random(int(sys.argv[3]))
refused = 0
for turn in range(int(sys.argv[4])):
    at = chance.randrange(chance.choice([500, 40_000, len(source) - 8]))  # header, texts, model
    work.write_bytes(damaged(source, chance, turn, at))
    child = os.fork()
    if child == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
        signal.alarm(60)
        code = 0
        for look in (litertlm.read_back, litertlm.audit, litertlm.load):
            try:
                look(work)
            except StageError as error:  # its subclasses are what a reader may raise
                code = 3
        try:
            with engine(work) as opened:
                opened.continued("the dog", 2)
        except ForeignFile:
            code = 3
        os._exit(code)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, 3), (turn, at, ended)
    refused += ended == 3
print(refused)
"""


@pytest.mark.slow
def test_three_hundred_damaged_bundles_crash_nothing(tmp_path: Path) -> None:
    assert int(fuzzing.told(FUZZ, TINY, tmp_path / "damaged.litertlm", 1, 300, timeout_s=550)) > 250


def test_an_absent_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.litertlm", tmp_path):
        with pytest.raises(VerificationError, match="cannot be read"):
            litertlm.read_back(path)
