"""Real exports of small students: read back from their bytes, and executed by llama.cpp."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_students import BUCKETS, CONFIGS, SCHEMES, differences, student
from torch import nn

from edgedistill import catalog
from edgedistill.errors import MissingDependency, StageError, VerificationError
from edgedistill.exporters import gguf
from edgedistill.exporters.gguf import layouts, running
from edgedistill.exporters.gguf.parsing import F32, Q4_0, Q8_0, Parsed, parse
from edgedistill.exporters.gguf.running import open_file
from edgedistill.exporters.gguf.writing import write
from edgedistill.plan.size import file_size
from edgedistill.quant import freeze
from edgedistill.specs import QuantScheme
from edgedistill.students import llama, part


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
    size = file_size("gguf", frozen.tensors, frozen.scheme, [8], config=CONFIGS[name], tokenizer_bytes=0).total_mb
    assert size == pytest.approx(path.stat().st_size / 1e6, rel=0.01)


def test_the_llama_architecture_has_its_rows_in_another_order_and_the_others_not(made: Any) -> None:
    for name in ("llama", "qwen3"):
        frozen, path = made(name, "int8")
        stored = parse(path).tensors["blk.0.attn_q.weight"].data.reshape(128, -1)
        ours = frozen.quantized["layers.0.query.weight"].codes
        second = stored[1, 2:34].view(np.int8)  # behind the first block's scale
        assert np.array_equal(second, ours[16 if name == "llama" else 1, :32])


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


def test_what_the_planner_reads_are_literals() -> None:
    about = catalog.constants("exporters", "gguf")
    for scheme in SCHEMES.values():
        assert scheme.misfit(about["HOLDS"]) is None
    assert about["COMPUTES"] == {"dynamic_int8": "float", "float": "float"}
    assert about["REQUIRES"] == ("gguf", "llama_cpp")
    assert Q4_0 != Q8_0
