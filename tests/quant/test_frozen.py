"""The frozen student: equal to the trained one, the same bytes on disk, and nothing strange accepted back."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from edgedistill.errors import SpecError, StageError
from edgedistill.quant.fake import freeze_observers, prepare
from edgedistill.quant.frozen import DESCRIPTION, TENSORS, FrozenStudent, freeze
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import bert
from edgedistill.students.bert.module import build

MID = bert.Config(layers=2, width=64, heads=4, ffn=600, vocabulary=300, max_length=24, classes=9)  # 600: chunked sums
TASK = {"labels": ["a", "ü"], "lower": True}


def trained(config: bert.Config, scheme: QuantScheme) -> nn.Module:
    torch.manual_seed(0)
    model = prepare(build(config), scheme, bert.tensors(config)).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(4):
        ids = torch.randint(0, config.vocabulary, (8, config.max_length))
        loss = nn.functional.cross_entropy(model(ids, torch.ones_like(ids)).logits, ids[:, 0] % config.classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    freeze_observers(model)
    return model.eval()


def frozen_of(config: bert.Config = bert.TINY, activations: Any = "dynamic_int8") -> tuple[nn.Module, FrozenStudent]:
    scheme = QuantScheme(activations=activations)
    model = trained(config, scheme)
    return model, freeze(model, "bert", config, scheme, TASK)


@pytest.mark.parametrize("activations", ["dynamic_int8", "static_int8"])
@pytest.mark.parametrize("config", [bert.TINY, MID])
def test_frozen_student_equals_the_fake_quantized_one_bit_for_bit(config: bert.Config, activations: str) -> None:
    model, frozen = frozen_of(config, activations)
    ids = torch.randint(0, config.vocabulary, (7, config.max_length))
    mask = torch.ones_like(ids)
    mask[3:, 5:] = 0
    with torch.no_grad():
        ours, theirs = frozen.to_module()(ids, mask), model(ids, mask)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.pooled, theirs.pooled)
    assert float(theirs.logits.std()) > 1e-3


@pytest.mark.parametrize("activations", ["dynamic_int8", "static_int8"])
def test_round_trip_is_byte_identical(tmp_path: Path, activations: str) -> None:
    _, frozen = frozen_of(activations=activations)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    frozen.save(first)
    loaded = FrozenStudent.load(first)
    loaded.save(second)
    for name in (TENSORS, DESCRIPTION):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert loaded.task == TASK
    assert loaded.ranges == frozen.ranges
    assert bool(loaded.ranges) == (activations == "static_int8")


def test_every_tensor_of_the_family_is_stored_once() -> None:
    _, frozen = frozen_of()
    kinds = {tensor.name: tensor.kind for tensor in bert.tensors(bert.TINY)}
    assert set(frozen.quantized) == {name for name, kind in kinds.items() if kind != "float"}
    assert set(frozen.floats) == {name for name, kind in kinds.items() if kind == "float"}
    assert all(t.codes.dtype == np.int8 and t.scales.dtype == np.float32 for t in frozen.quantized.values())
    coded = sum(t.codes.size + 4 * t.scales.size for t in frozen.quantized.values())
    assert frozen.parameter_bytes == coded + 4 * sum(values.size for values in frozen.floats.values())


def test_a_float_model_freezes_for_a_dynamic_scheme_and_not_for_a_static_one() -> None:
    model = build(bert.TINY)
    assert freeze(model, "bert", bert.TINY, QuantScheme(), {}).ranges == {}
    with pytest.raises(StageError, match="no ranges"):
        freeze(model, "bert", bert.TINY, QuantScheme(activations="static_int8"), {})


def test_a_diverged_model_does_not_freeze() -> None:
    model = build(bert.TINY)
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(StageError, match=r"classifier\.weight.*not finite"):
        freeze(model, "bert", bert.TINY, QuantScheme(), {})


def edited(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(values | changes))


def retensored(folder: Path, change: Any) -> None:
    arrays = safetensors.numpy.load_file(folder / TENSORS)
    change(arrays)
    payload = safetensors.numpy.save(arrays)
    (folder / TENSORS).write_bytes(payload)
    edited(folder, tensors_sha256=hashlib.sha256(payload).hexdigest())


def repacked(folder: Path, dtype: str, shape: list[int], size: int) -> None:
    """Another file of tensors, whose hash is told."""
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    payload = struct.pack("<Q", len(header)) + header + bytes(size)
    (folder / TENSORS).write_bytes(payload)
    edited(folder, tensors_sha256=hashlib.sha256(payload).hexdigest())


WORD = "embeddings.word.weight"
DAMAGE = {
    "truncated": (lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-5]), "sha256"),
    "missing file": (lambda f: (f / TENSORS).unlink(), "No such file"),
    "not json": (lambda f: (f / DESCRIPTION).write_text("{"), "JSON"),
    "deep json": (lambda f: (f / DESCRIPTION).write_text("[" * 200_000), "JSON"),
    "a type that numpy has not": (lambda f: repacked(f, "BF16", [2], 4), "not a safetensors file of a student"),
    "more axes than arrays have": (lambda f: repacked(f, "F32", [1] * 70, 4), "not a safetensors file of a student"),
    "not utf-8": (lambda f: (f / DESCRIPTION).write_bytes(b"\xff{}"), "JSON"),
    "wrong schema": (lambda f: edited(f, schema=1), "schema 2"),
    "extra key": (lambda f: edited(f, extra=1), "schema 2"),
    "family path": (lambda f: edited(f, family="../x"), "student family"),
    "family unknown": (lambda f: edited(f, family="nosuch"), "student family"),
    "bad config": (lambda f: edited(f, config={"layers": 1}), "missing"),
    "other config": (lambda f: edited(f, config=bert.TINY.model_copy(update={"layers": 2}).model_dump()), "layers.1"),
    "bad scheme": (lambda f: edited(f, scheme={"weight_bits": 4}), "weight_bits"),
    "ranges on dynamic": (lambda f: edited(f, ranges={"classifier": [[0.1, 0], [0.1, 0]]}), "ranges"),
    "task list": (lambda f: edited(f, task=[1]), "JSON objects"),
    "missing tensor": (lambda f: retensored(f, lambda a: a.pop("classifier.bias")), r"classifier\.bias"),
    "shape": (lambda f: retensored(f, lambda a: a.update({f"{WORD}.codes": a[f"{WORD}.codes"][:-1]})), "must be int8"),
    "dtype": (
        lambda f: retensored(f, lambda a: a.update({f"{WORD}.codes": a[f"{WORD}.codes"].astype(np.float32)})),
        "must be int8",
    ),
    "code -128": (lambda f: retensored(f, lambda a: a[f"{WORD}.codes"].__setitem__((0, 0), -128)), "-128"),
    "scale not fp16": (lambda f: retensored(f, lambda a: a[f"{WORD}.scales"].__setitem__(0, 0.1)), "fp16"),
    "scale 0": (lambda f: retensored(f, lambda a: a[f"{WORD}.scales"].__setitem__(0, 0)), "fp16"),
    "nan": (lambda f: retensored(f, lambda a: a["classifier.bias"].__setitem__(0, np.nan)), "not finite"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_with_the_reason(tmp_path: Path, damage: str) -> None:
    _, frozen = frozen_of()
    frozen.save(tmp_path)
    FrozenStudent.load(tmp_path)
    spoil, reason = DAMAGE[damage]
    spoil(tmp_path)
    with pytest.raises(SpecError, match=reason):
        FrozenStudent.load(tmp_path)


@pytest.mark.parametrize("pair", [[[0.1, 0]], [[0.1, 0], [0.0, 0]], [[0.1, 0], [0.1, 200]], [[0.1, 0], [0.1, 0.5]], 3])
def test_a_damaged_range_is_refused(tmp_path: Path, pair: Any) -> None:
    _, frozen = frozen_of(activations="static_int8")
    frozen.save(tmp_path)
    ranges = json.loads((tmp_path / DESCRIPTION).read_text())["ranges"]
    edited(tmp_path, ranges=ranges | {"classifier": pair})
    with pytest.raises(SpecError, match=r"range.* of classifier"):
        FrozenStudent.load(tmp_path)
