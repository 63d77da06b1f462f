"""A student trained with torchao, through `edgedistill convert`: its very codes in files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchao.quantization import quantize_
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
from torchao.quantization.quant_primitives import quantize_affine
from torchao.quantization.utils import get_group_qparams_symmetric

from edgedistill import coreml
from edgedistill.catalog import load_plugin
from edgedistill.errors import SpecError
from edgedistill.exporters.coreml.card import card_of
from edgedistill.pipeline.conversion import convert
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.specs import Checkpoint, PerGroup, QuantScheme, WeightGrid

ABOUT = """
weights = "qat.safetensors"
tokenizer = "tokenizer.json"
labels = {labels}
buckets = [8, 16]
scale_precision = "float16"

[config]
layers = 1
width = 32
heads = 2
ffn = 64

[scheme]
activations = "float"
weights = {{ bits = 4, granularity = {{ kind = "per_group" }} }}
head = {{ bits = 4, granularity = {{ kind = "per_group" }} }}
"""


@pytest.fixture
def checkpoint(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Five steps of torchao's QAT on the tiny student: int4 groups in linear layers, int8 rows in the table."""
    frozen = FrozenStudent.load(tiny_bundle / "frozen")
    model = frozen.build().train()
    linear = IntxFakeQuantizeConfig(torch.int4, group_size=32, scale_precision=torch.float16)
    table = IntxFakeQuantizeConfig(torch.int8, "per_channel", scale_precision=torch.float16)
    quantize_(model, QATConfig(weight_config=linear, step="prepare"), lambda m, _: isinstance(m, nn.Linear))
    quantize_(model, QATConfig(weight_config=table, step="prepare"), lambda m, _: isinstance(m, nn.Embedding))
    optimizer, generator = torch.optim.SGD(model.parameters(), 1e-2), torch.Generator().manual_seed(0)
    for _ in range(5):
        ids = torch.randint(0, frozen.config["vocabulary"], (8, 12), generator=generator)
        nn.functional.cross_entropy(model(ids, torch.ones_like(ids)).logits, ids[:, 0] % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "qat.safetensors")
    (tmp_path / "tokenizer.json").write_bytes((tiny_bundle / "tokenizer.json").read_bytes())
    labels = (tiny_bundle / "labels.txt").read_text().splitlines()
    path = tmp_path / "checkpoint.toml"
    path.write_text(ABOUT.format(labels=json.dumps(labels)))
    return path


def test_the_codes_that_torchao_trained_are_in_every_file(checkpoint: Path, cli: Callable[..., Any]) -> None:
    from safetensors.torch import load_file

    out = checkpoint.parent / "out"
    options = ("--format", "onnx,gguf", "--out", out, "--data", "builtin:banking5")
    done = cli("convert", checkpoint, *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["tensors"]) == 8
    state = load_file(checkpoint.parent / "qat.safetensors")
    for item in found["tensors"]:  # -128, which int8 of ours has not, may move a weight of the table
        assert item["exact"] or item["name"] == "embeddings.word.weight", item
    for artifact in found["artifacts"]:
        stored = load_plugin("exporters", artifact["format"]).read_back(out / artifact["path"])
        for name in ("layers.0.up.weight", "classifier.weight"):
            scales, zeros = get_group_qparams_symmetric(state[name], 4, 32, torch.float16)
            theirs = quantize_affine(state[name], (1, 32), scales, zeros, torch.int8, -8, 7)
            assert np.array_equal(stored[name].codes, theirs.numpy())
            assert np.array_equal(stored[name].scales, scales.float().numpy().reshape(stored[name].scales.shape))
        parity = found["parity"][artifact["format"]]
        assert parity["codes_max_difference"] == 0
        assert parity["argmax_agreement"] > 0.95
        assert parity["accuracy_file"] > 0.5
    assert FrozenStudent.load(out / "frozen").scheme.weights.bits == 4
    assert json.loads((out / "conversion.json").read_text())["checkpoint"]["scale_precision"] == "float16"
    again = cli("convert", checkpoint, *options)
    assert again.returncode == 2
    assert "exists. Choose another --out" in again.stderr


def test_a_bundles_student_as_a_core_ml_package_of_float32(
    tiny_bundle: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    options = ("convert", tiny_bundle, "--out", tmp_path / "single", "--format")
    done = cli(*options, "coreml", "--precision", "float32", "--json")
    assert done.returncode == 0, done.stderr
    (artifact,) = json.loads(done.stdout)["artifacts"]
    path = tmp_path / "single" / artifact["path"]
    load_plugin("exporters", "coreml").verify(FrozenStudent.load(tiny_bundle / "frozen"), path)
    assert card_of(coreml.load(path)).precision == "float32"
    assert any("computed in fp32" in risk for risk in artifact["audit"]["risks"])
    for refused, told in ((options, "exists"), (("convert", tmp_path, *options[2:]), "has no manifest.json")):
        done = cli(*refused, "coreml")
        assert done.returncode == 2
        assert re.search(told, done.stderr)
    for source, name in ((tiny_bundle / "labels.txt", "coreml"), (tiny_bundle, "onnx")):
        done = cli("convert", source, "--out", tmp_path / "none", "--format", name, "--precision", "float32")
        assert done.returncode == 2
        assert "--precision float32 goes with a bundle and --format coreml" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("bits = 4", "bits = 5", "checkpoint.toml"),
        ("width = 32", "width = 64", "in the checkpoint, must be"),
        ("qat.safetensors", "none.safetensors", "not a safetensors file"),
        ("tokenizer.json", "none.json", "not a tokenizer"),
        ('family = "bert"', 'family = "bart"', "did you mean 'bert'"),
        ("buckets = [8, 16]", "buckets = [8, 99]", "in the checkpoint, must be"),
        ("scale_precision", "scale_precison", "did you mean 'scale_precision'"),
    ],
)
def test_a_checkpoint_that_is_not_what_its_file_says_is_refused(
    checkpoint: Path, old: str, new: str, told: str
) -> None:
    checkpoint.write_text(f'family = "bert"\n{checkpoint.read_text()}'.replace(old, new))
    out = checkpoint.parent / "out"
    with pytest.raises(SpecError, match=re.escape(told)):
        convert(Checkpoint.read_toml(checkpoint), checkpoint.parent, ["onnx"], out)
    assert not out.exists()


def test_a_format_that_cannot_hold_it_is_refused_at_once(checkpoint: Path, cli: Callable[..., Any]) -> None:
    done = cli("convert", checkpoint, "--format", "tflite", "--out", checkpoint.parent / "out")
    assert done.returncode == 2
    assert "cannot store exactly" in done.stderr
    told = " ".join(done.stderr.split())
    assert "The nearest scheme that tflite can store has " in told
    assert "train it with that scheme" in told
    done = cli("convert", checkpoint, "--format", "litertlm", "--out", checkpoint.parent / "out")
    assert done.returncode == 2
    assert "format 'litertlm' cannot hold the student family 'bert'. It can be held by: tflite" in done.stderr


def test_a_bundle_whose_student_a_format_cannot_hold_is_refused_with_what_it_could(
    tiny_bundle: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """As a plan refuses it, before anything is written: a format of other families, groups of 8 bits."""
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    student = FrozenStudent.load(copy / "frozen")
    groups = QuantScheme(weights=WeightGrid(granularity=PerGroup()))
    config = load_plugin("students", "bert").Config.decode(student.config, "config")
    freeze(student.to_module("float"), "bert", config, groups, student.task).save(copy / "frozen")
    for name, expected in (
        ("litertlm", "format 'litertlm' cannot hold the student family 'bert'. It can be held by: tflite"),
        ("tflite", "export.scheme.weights = 'int8 per group of 32'; it holds 'int8 per channel', 'int4 per channel', "
         "'int4 per group of 32'. The nearest scheme that tflite can store has weights = { bits = 8 }. Its codes were "
         "trained for their grid: build again with that scheme."),
    ):  # fmt: skip
        done = cli("convert", copy, "--out", tmp_path / "none", "--format", name)
        assert done.returncode == 2
        assert expected in " ".join(done.stderr.split())
        assert not (tmp_path / "none").exists()
