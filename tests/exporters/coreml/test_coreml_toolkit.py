"""Faults of coremltools that are kept out, and what is refused before it is called."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from coreml_students import answers, student
from torch import Tensor, nn

from edgedistill.coreml import Evaluator
from edgedistill.coreml import load as parse
from edgedistill.data.tensors import Outputs
from edgedistill.errors import MissingDependency, StageError, VerificationError
from edgedistill.exporters import coreml
from edgedistill.exporters.coreml import convert, operators, proof
from edgedistill.exporters.coreml.convert import Converter
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.specs import Spec
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import Port, Signature, StoredTensor, bert
from edgedistill.students._points import Point


class Width(Spec):
    """Config of the toy family."""

    width: int = 32


class Toy(nn.Module):
    """Two points with a reshape between them, and a reciprocal."""

    def __init__(self, config: Width) -> None:
        super().__init__()
        self.first, self.second = Point(), Point()
        self.head = nn.Linear(config.width, 3)

    def forward(self, pixels: Tensor) -> Outputs:
        x = self.second(self.first(pixels).reshape(1, -1))
        out = self.head(x * (1.0 / torch.arange(1.0, 1.0 + x.shape[1]).sqrt()))
        return Outputs(out, out)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Width:
    """A family of its own, `toy`, whose inputs are [1, 2, width / 2]."""
    about: Any = ModuleType("edgedistill.students.toy")
    about.Config, about.__path__ = Width, []
    about.tensors = lambda config: [
        StoredTensor("head.weight", (3, config.width), "head"),
        StoredTensor("head.bias", (3,), "float"),
    ]
    about.signatures = lambda config, buckets: (
        Signature("toy", (Port("pixels", (1, 2, config.width // 2), "float32"),), (Port("logits", (1, 3), "float32"),)),
    )
    about.sample = lambda config, signature, random: {
        "pixels": random.normal(size=signature.inputs[0].shape).astype(np.float32)
    }
    module: Any = ModuleType("edgedistill.students.toy.module")
    module.build = Toy
    monkeypatch.setitem(sys.modules, "edgedistill.students.toy", about)
    monkeypatch.setitem(sys.modules, "edgedistill.students.toy.module", module)
    return Width()


def static_toy(config: Width) -> FrozenStudent:
    frozen = student("toy", config, QuantScheme(activations="static_int8"))
    points = {
        "first": frozen.points["first"],
        "second": frozen.points["first"]._replace(scale=2 * frozen.points["first"].scale),
    }
    return dataclasses.replace(frozen, points=points)


def test_the_miscompiled_reshape_is_kept_out_and_would_be_found(
    toy: Width, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """coremltools 9.0 moves a reshape onto the integers although the grids before and after it differ."""
    frozen = static_toy(toy)
    coreml.export(frozen, [1], tmp_path / "right.mlpackage")
    ours, theirs = answers(frozen, tmp_path / "right.mlpackage")
    assert np.abs(ours - theirs).max() < 0.1 * np.abs(ours).max()

    monkeypatch.setattr(convert, "REMOVED_PASSES", ())
    (tmp_path / "raw").mkdir()
    converter = Converter(frozen, frozen.signatures([1]))
    raw = converter.write(tmp_path / "raw")
    shipped = parse(raw.path)
    twin, random = Evaluator(proof.unrounded(shipped, raw.floats), "fp64"), np.random.default_rng(0)
    student_ = frozen.to_module().double()
    errors, largest = [], 0.0
    for _ in range(10):
        feeds = frozen.sample(converter.signature, random)
        with torch.no_grad():
            wanted = student_(torch.from_numpy(feeds["pixels"]).double()).logits.numpy()
        errors.append(np.abs(twin.predict(feeds)["logits"] - wanted).max())
        largest = max(largest, np.abs(wanted).max())
    assert np.median(errors) > 0.1 * largest
    with pytest.raises(VerificationError, match="the graph answers"):
        proof.prove(frozen, frozen.signatures([1]), shipped, raw.floats)
    with pytest.raises(
        StageError, match="first_quantize_cast_fp16 is no quantize operation whose codes are dequantized"
    ):
        coreml.export(frozen, [1], tmp_path / "wrong.mlpackage")
    assert not (tmp_path / "wrong.mlpackage").exists()


def test_the_inexact_reciprocal_is_replaced_and_would_be_found(
    toy: Width, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """coremltools 9.0 computes 1 / x as 1 / (x + 1e-4)."""
    frozen = student("toy", toy, QuantScheme(activations="float"))
    coreml.export(frozen, [1], tmp_path / "right.mlpackage")
    theirs = importlib.import_module("coremltools.converters.mil.frontend.torch.ops").reciprocal
    monkeypatch.setattr(operators, "reciprocal", theirs)
    with pytest.raises(VerificationError, match="the graph answers"):
        coreml.export(frozen, [1], tmp_path / "wrong.mlpackage")


@pytest.mark.parametrize("buckets", [[], [0], [-4, 8], [8, 17]])
def test_impossible_buckets_are_refused_before_anything_slow(buckets: list[int], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="max_length = 16"):
        coreml.export(student("bert", bert.TINY, QuantScheme()), buckets, tmp_path / "no.mlpackage")
    assert not list(tmp_path.iterdir())


def test_without_coremltools_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingDependency, match=r"pip install 'edgedistill\[coreml\]'"):
        coreml.export(student("bert", bert.TINY, QuantScheme()), [8], tmp_path / "no.mlpackage")
