"""Files that are not the student's, spoiled on purpose, and files made to do harm."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_students import (
    BUCKETS,
    CONFIGS,
    SCHEMES,
    drop,
    floated,
    rewritten,
    said,
    sized,
    student,
    swap,
    twice,
    typed,
)

from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters import gguf
from edgedistill.exporters._proof import Limits, executes
from edgedistill.exporters.gguf import layouts, writing
from edgedistill.exporters.gguf.parsing import F32, Q8_0, Value, parse
from edgedistill.exporters.gguf.running import open_file
from edgedistill.exporters.gguf.writing import write


@pytest.mark.parametrize(
    ("name", "scheme"), [("llama", "mixed"), ("qwen2", "int4"), ("gemma3", "int8"), ("bert", "mixed")]
)
def test_one_code_and_one_scale_are_found_in_every_tensor(made: Any, tmp_path: Path, name: str, scheme: str) -> None:
    """A code moved by one, or a scale by the last bit of its fp16, in the bytes of the file."""
    frozen, path = made(name, scheme)
    layout, data = writing.layout_of(frozen), bytearray(path.read_bytes())
    spoiled, whole = tmp_path / "spoiled.gguf", parse(path)
    start = {key: data.find(tensor.data.tobytes()) for key, tensor in whole.tensors.items()}
    for ours, grid in frozen.grids().items():
        at = start[layout.names[ours]]
        block = 34 if grid.bits == 8 else 18
        for place, what in ((at + block + 7, "code"), (at + block, "scale")):
            data[place] ^= 1
            spoiled.write_bytes(data)
            with pytest.raises(VerificationError, match=rf"1 of \d+ {what}s of {ours}|{ours} has channels"):
                gguf.verify(frozen, spoiled)
            data[place] ^= 1
    for ours in frozen.floats:
        at = start[layout.names[ours]]
        data[at] ^= 1
        spoiled.write_bytes(data)
        with pytest.raises(VerificationError, match=f"{ours} is not in the file"):
            gguf.verify(frozen, spoiled)
        data[at] ^= 1
    spoiled.write_bytes(data)
    gguf.verify(frozen, spoiled)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("llama", swap("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"), r"codes of layers\.0\.up"),
        ("llama", swap("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"), r"layers\.0\.attention_norm"),
        ("qwen2", drop("blk.1.attn_k.bias"), r"missing or unknown: blk\.1\.attn_k\.bias"),
        ("qwen3", drop("blk.1.attn_k_norm.weight"), r"missing or unknown"),
        ("llama_tied", twice("token_embd.weight", "output.weight"), r"missing or unknown: output\.weight"),
        ("gemma3", floated("blk.0.ffn_down.weight"), r"blk\.0\.ffn_down\.weight has type 0"),
        ("bert", floated("cls.output.weight"), r"cls\.output\.weight has type 0"),
        ("bert", typed, r"token_types\.weight, which the student has not, is not zero"),
        ("llama", said("llama.rope.freq_base", np.float32(500000.0)), r"llama\.rope\.freq_base is .*500000"),
        ("llama", said("llama.attention.head_count", np.uint32(8)), "head_count"),
        ("qwen3", said("qwen3.attention.layer_norm_rms_epsilon", np.float32(1e-5)), "epsilon"),
        ("gemma3", said("gemma3.attention.sliding_window", np.uint32(6)), "sliding_window"),
        ("gemma3", lambda metadata, _: metadata.pop("gemma3.rope.freq_base_swa"), "freq_base_swa is None"),
        ("bert", said("bert.classifier.pooling_type", np.uint32(2)), "pooling_type"),
        ("bert", said("bert.attention.causal", True), "causal"),
        ("bert", said("bert.classifier.output_labels", [*"bacdefg"]), "output_labels"),
        ("llama", said("llama.rope.scaling.type", "yarn"), r"rope\.scaling\.type is 'yarn', the student's is None"),
        ("llama", said("edgedistill.buckets", np.array([8, 65], np.uint32)), "must be between 1 and"),
        ("llama", said("edgedistill.buckets", np.array([48, 8], np.uint32)), "not in order"),
        ("llama", said("edgedistill.scheme", SCHEMES["int8"].model_dump_json()), "has type"),
        ("llama", said("edgedistill.config", '{"layers": 3}'), "describes no student"),
        ("llama", said("edgedistill.config", "[" * 100_000), "no JSON object"),
        ("llama", sized(heads=2**40, kv_heads=2**40), "describes no student: .*out of bounds"),
        ("bert", sized(ffn=2**32), "describes no student: .*out of bounds"),
        ("llama", said("edgedistill.family", "../../x"), "unknown family"),
        ("llama", said("edgedistill.exact", False), "not exported by this package"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_the_student_is_found(made: Any, tmp_path: Path, name: str, change: Any, told: str) -> None:
    frozen, path = made(name)
    spoiled = rewritten(path, tmp_path / "spoiled.gguf", change)
    with pytest.raises(VerificationError, match=told):
        gguf.verify(frozen, spoiled)


def test_rewriting_alone_changes_nothing(made: Any, tmp_path: Path) -> None:
    """The control of the test above."""
    for name in CONFIGS:
        frozen, path = made(name)
        same = rewritten(path, tmp_path / "same.gguf", lambda *_: None)
        assert same.read_bytes() == path.read_bytes()
        gguf.verify(frozen, same)


def test_a_forgotten_order_of_rows_is_found_twice(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its codes where only the writer forgets it, by what the twin computes where the reader does too."""
    frozen, _ = made("llama")
    with monkeypatch.context() as patch:
        patch.setattr(layouts, "_neighbours", lambda heads, width: np.arange(heads * width))
        write(frozen, BUCKETS, tmp_path / "forgotten.gguf")
        gguf.verify(frozen, tmp_path / "forgotten.gguf")
        with pytest.raises(VerificationError, match="does not compute what was trained"):
            gguf.export(frozen, BUCKETS, tmp_path / "never.gguf")
    with pytest.raises(VerificationError, match=r"codes of layers\.0\.query"):
        gguf.verify(frozen, tmp_path / "forgotten.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["forgotten.gguf"]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "llama.rope.freq_base", np.float32(9000.0)),
        ("qwen2", "qwen2.attention.layer_norm_rms_epsilon", np.float32(1e-2)),
        ("gemma3", "gemma3.attention.sliding_window", np.uint32(6)),
        ("gemma3", "gemma3.rope.freq_base_swa", np.float32(20000.0)),
        ("bert", "bert.classifier.pooling_type", np.uint32(2)),
    ],
)
def test_a_graph_that_is_slightly_wrong_is_found_by_running_the_twin(
    name: str, key: str, value: Value, tmp_path: Path
) -> None:
    """Were the metadata compared with itself only, the twin would still tell."""
    frozen = student(name)
    write(frozen, [48], tmp_path / "twin.gguf", exact=False)
    wrong = rewritten(tmp_path / "twin.gguf", tmp_path / "wrong.gguf", said(key, value))
    limit = gguf._TWIN_LIMITS.get(name, gguf._TWIN_LIMIT)
    with contextlib.closing(open_file(tmp_path / "twin.gguf", exact=True)) as runner:
        executes(frozen, runner, limit, "float")
    found = pytest.raises(VerificationError, match="does not compute what was trained")
    with contextlib.closing(open_file(wrong, exact=True)) as runner, found:
        executes(frozen, runner, limit, "float")


def test_a_bias_that_is_dropped_loads_and_is_found(tmp_path: Path) -> None:
    """To llama.cpp the biases of a qwen2 are optional: it loads the file and computes another network."""
    frozen = student("qwen2")
    write(frozen, [48], tmp_path / "twin.gguf", exact=False)
    wrong = rewritten(tmp_path / "twin.gguf", tmp_path / "wrong.gguf", drop("blk.2.attn_v.bias"))
    found = pytest.raises(VerificationError, match="does not compute")
    with contextlib.closing(open_file(wrong, exact=True)) as runner, found:
        executes(frozen, runner, Limits(1e-4, 1e-3), "float")


def test_another_student_is_found(made: Any) -> None:
    frozen, path = made("bert")
    floats = copy.deepcopy(frozen.floats)
    floats["classifier.bias"][2] += 0.125
    with pytest.raises(VerificationError, match=r"classifier\.bias"):
        gguf.verify(dataclasses.replace(frozen, floats=floats), path)
    with pytest.raises(VerificationError, match="output_labels"):
        gguf.verify(dataclasses.replace(frozen, task={"labels": list("abcdefg")}), path)


def header(tensors: int, keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + version.to_bytes(4, "little") + tensors.to_bytes(8, "little") + keys.to_bytes(8, "little") + rest


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def text(value: bytes) -> bytes:
    return u64(len(value)) + value


def info(shape: tuple[int, ...], kind: int = F32, offset: int = 0, name: bytes = b"x") -> bytes:
    return text(name) + u32(len(shape)) + b"".join(u64(size) for size in shape) + u32(kind) + u64(offset)


HUGE = 2**62
HOSTILE = {
    "empty": b"",
    "magic only": b"GGUF",
    "another magic": b"GGML" + bytes(60),
    "version 1": header(0, 0, version=1),
    "big-endian version": header(0, 0, version=3 << 24),
    "keys without end": header(0, HUGE, bytes(64)),
    "tensors without end": header(HUGE, 0, bytes(64)),
    "a huge key": header(0, 1, u64(HUGE) + b"abc"),
    "a huge text": header(0, 1, text(b"a") + u32(8) + u64(HUGE)),
    "a text that is not UTF-8": header(0, 1, text(b"a") + u32(8) + text(b"\xff\xfe")),
    "a huge array of numbers": header(0, 1, text(b"a") + u32(9) + u32(4) + u64(HUGE)),
    "a huge array of texts": header(0, 1, text(b"a") + u32(9) + u32(8) + u64(HUGE) + bytes(100)),
    "arrays in arrays": header(0, 1, text(b"a") + (u32(9) + u32(9) + u64(1)) * 1000),
    "an unknown type": header(0, 1, text(b"a") + u32(77) + bytes(8)),
    "a truth value of 7": header(0, 1, text(b"a") + u32(7) + b"\7"),
    "a key twice": header(0, 2, (text(b"a") + u32(4) + u32(1)) * 2),
    "an alignment of 3": header(0, 1, text(b"general.alignment") + u32(4) + u32(3)),
    "an alignment of 0": header(0, 1, text(b"general.alignment") + u32(4) + u32(0)),
    "a huge tensor": header(1, 0, info((HUGE, HUGE, HUGE)) + bytes(64)),
    "a tensor of nothing": header(1, 0, info((0, 4)) + bytes(64)),
    "a tensor without dimensions": header(1, 0, info(()) + bytes(64)),
    "a tensor with many dimensions": header(1, 0, text(b"x") + u32(2**31) + bytes(400)),
    "an unknown tensor type": header(1, 0, info((32,), 99) + bytes(64)),
    "half a block": header(1, 0, info((16,), Q8_0) + bytes(64)),
    "a tensor somewhere else": header(1, 0, info((4,), offset=HUGE) + bytes(64)),
    "two tensors in one place": header(2, 0, info((4,)) + info((4,), name=b"y") + bytes(64)),
    "a tensor twice": header(2, 0, info((8,)) + info((8,), offset=32) + bytes(128)),
    "bytes behind the last tensor": header(1, 0, info((4,)) + bytes(4000)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_at_once(content: bytes, tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    for call in (parse, gguf.read_back, gguf.audit, gguf.load):
        with pytest.raises(VerificationError):
            call(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_every_cut_and_every_flipped_byte_is_refused_or_read(made: Any, tmp_path: Path) -> None:
    """No other error than ours, whatever the header holds."""
    _, path = made("bert")
    whole, spoiled = path.read_bytes(), tmp_path / "spoiled.gguf"
    for end in range(0, len(whole) - 32, 1009):
        spoiled.write_bytes(whole[:end])
        with pytest.raises(VerificationError):
            gguf.read_back(spoiled)
    random = np.random.default_rng(0)
    start, refused = whole.find(parse(path).tensors["token_embd.weight"].data.tobytes()), 0
    for at in random.integers(0, start, 250):
        data = bytearray(whole)
        data[at] = int(random.integers(0, 256))
        spoiled.write_bytes(data)
        try:
            gguf.read_back(spoiled)
        except VerificationError:
            refused += 1
    assert refused > 150
    with pytest.raises(VerificationError, match="cannot be read"):
        gguf.read_back(tmp_path / "absent.gguf")


def test_a_damaged_file_does_not_end_the_process_that_loads_it(made: Any, tmp_path: Path) -> None:
    """llama.cpp divides by what a header says, and asserts; what it would not survive must not reach it."""
    path = made("llama")[1]
    code = (
        "import random, sys; from pathlib import Path; from edgedistill.exporters import gguf\n"
        "from edgedistill.errors import StageError\n"
        "whole, spoiled, draw = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), random.Random(0)\n"
        "refused = 0\n"
        "for _ in range(300):\n"
        "    data = bytearray(whole)\n"
        "    data[draw.randrange(3600)] = draw.choice((0, 1, 255, draw.randrange(256)))\n"
        "    spoiled.write_bytes(data)\n"
        "    try: gguf.load(spoiled).close()\n"
        "    except StageError: refused += 1\n"
        "sys.stdout.write(str(refused))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "x")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_tokens_of_equal_text_on_which_llama_cpp_would_abort_are_refused(made: Any, tmp_path: Path) -> None:
    _, path = made("llama")
    doubled = rewritten(path, tmp_path / "doubled.gguf", said("tokenizer.ggml.tokens", ["a"] * 160))
    with pytest.raises(StageError, match="two tokens have the same text"):
        gguf.load(doubled)


def test_a_file_that_llama_cpp_refuses_is_an_error_with_its_reason(made: Any, tmp_path: Path, capfd: Any) -> None:
    _, path = made("llama")
    less = rewritten(path, tmp_path / "less.gguf", drop("blk.1.ffn_up.weight"))
    with pytest.raises(StageError, match=r"cannot load .*blk\.1\.ffn_up"):
        open_file(less)
    with pytest.raises(VerificationError, match="missing or unknown"):
        gguf.load(less)
    assert capfd.readouterr() == ("", "")
