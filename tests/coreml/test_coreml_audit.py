"""The overflow audit and the list of risks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_models import built, convert, coremltools
from torch import nn

from edgedistill.coreml import lint, load, overflow_audit
from edgedistill.coreml.proto import messages


def test_the_audit_names_where_an_overflow_starts(tmp_path: Path) -> None:
    def make(mb: Any, v: dict[str, Any]) -> Any:
        x = mb.cast(x=v["x"], dtype="fp16", name="narrow")
        squared = mb.square(x=x, name="squared")
        shrunk = mb.mul(x=squared, y=np.float16(1e-3), name="shrunk")
        return mb.cast(x=shrunk, dtype="fp32", name="wide")

    feeds = {"x": np.array([1.0, 300.0, -2.0], np.float32)}
    program = load(built(make, feeds, tmp_path / "o.mlpackage"))
    (found,) = overflow_audit(program, feeds)
    assert (found.name, found.operation, found.typed) == ("squared", "square", "fp16")
    assert found.largest == pytest.approx(90000)
    assert not found.infinite
    assert not found.nan
    assert overflow_audit(program, {"x": np.array([1.0, 200.0, -2.0], np.float32)}) == []


def test_the_audit_sees_infinite_masks_and_what_they_make(tmp_path: Path) -> None:
    """A row that is masked away whole: minus infinity in the scores, no number after the softmax."""
    mask = np.zeros((2, 3), np.float32)
    mask[1] = -np.inf

    def make(mb: Any, v: dict[str, Any]) -> Any:
        return mb.softmax(x=mb.add(x=v["x"], y=mask, name="scores"), axis=-1, name="weights")

    feeds = {"x": np.ones((2, 3), np.float32)}
    found = overflow_audit(load(built(make, feeds, tmp_path / "m.mlpackage")), feeds)
    assert [(o.operation, o.infinite, o.nan) for o in found] == [
        ("const", True, False),
        ("add", True, False),
        ("softmax", False, True),
    ]


def test_lint_names_risks_and_no_more(tmp_path: Path) -> None:
    ct = coremltools()
    module = nn.Sequential(nn.Embedding(20000, 4), nn.Linear(4, 3))
    feeds = {"ids": np.zeros((1, 6), np.int32)}
    shapes = {"ids": (1, ct.RangeDim(2, 9, default=6))}
    risks = lint(load(convert(module, feeds, tmp_path / "r.mlpackage", outputs=["y"], shapes=shapes)))
    codes = {risk.code for risk in risks}
    assert {"fp32", "flexible-input", "dynamic-shape", "operation", "metadata", "description"} <= codes
    assert all(str(risk).startswith("risk: ") for risk in risks)
    assert "gather" in next(risk.message for risk in risks if risk.code == "operation")


def test_lint_of_a_described_fp16_package_is_silent(tmp_path: Path) -> None:
    ct = coremltools()
    torch.manual_seed(1)
    feeds = {"x": np.ones((1, 3, 8, 8), np.float32)}
    path = convert(nn.Conv2d(3, 4, 3), feeds, tmp_path / "d.mlpackage", precision="fp16", outputs=["y"])
    model = ct.models.MLModel(str(path), skip_model_load=True)
    model.author, model.license, model.short_description, model.version = "a", "b", "c", "1"
    model.input_description["x"], model.output_description["y"] = "an image", "features"
    model.save(str(tmp_path / "told.mlpackage"))
    program = load(tmp_path / "told.mlpackage")
    risks = [risk for risk in lint(program) if risk.code != "fp32"]  # the cast back to the float32 interface
    assert risks == []
    assert (program.metadata.author, program.metadata.version) == ("a", "1")


def test_lint_finds_weights_stored_twice_and_large_dimensions(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).uniform(-1, 1, (32, 16)).astype(np.float32)

    def make(mb: Any, v: dict[str, Any]) -> Any:
        once, twice = mb.linear(x=v["x"], weight=weight), mb.linear(x=v["x"], weight=weight.copy())
        return mb.tile(x=mb.add(x=once, y=twice), reps=[1, 1024])

    risks = lint(load(built(make, {"x": np.ones((2, 16), np.float32)}, tmp_path / "w.mlpackage")))
    duplicate = next(risk for risk in risks if risk.code == "duplicate")
    assert duplicate.message.startswith("2048 bytes equal to those of const")
    assert any(risk.code == "dimension" and "tile" in risk.where for risk in risks)


def test_lint_finds_narrow_integers_below_ios_18(tmp_path: Path) -> None:
    coremltools()
    from coremltools.converters.mil.mil import types

    def make(mb: Any, v: dict[str, Any]) -> Any:
        codes = np.arange(-8, 8).reshape(4, 4).astype(types.np_int4_dtype)
        weight = mb.constexpr_blockwise_shift_scale(data=codes, scale=np.ones((4, 1), np.float32))
        return mb.linear(x=v["x"], weight=weight)

    path = built(make, {"x": np.ones((1, 4), np.float32)}, tmp_path / "n.mlpackage")
    assert not any(risk.code == "sub-byte" for risk in lint(load(path)))
    model = path / "Data/com.apple.CoreML/model.mlmodel"
    spec = messages().Model()
    spec.ParseFromString(model.read_bytes())
    function = spec.mlProgram.functions["main"]
    function.block_specializations["CoreML7"].CopyFrom(function.block_specializations.pop("CoreML8"))
    function.opset = "CoreML7"
    model.write_bytes(spec.SerializeToString())
    codes = [risk.code for risk in lint(load(path))]
    assert "sub-byte" in codes
    assert "specification" in codes
