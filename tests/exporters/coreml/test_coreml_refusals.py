"""Conversions that change the student are refused, whatever coremltools says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from coreml_students import BUCKETS, MID, SCHEMES, student
from torch import nn

from edgedistill.coreml import load as parse
from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters import coreml
from edgedistill.exporters.coreml import convert
from edgedistill.exporters.coreml.network import network
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import bert


def test_a_student_whose_steps_are_too_coarse_for_fp16_is_refused(tmp_path: Path) -> None:
    """Its grids alone move its answers by more than fp16 does; that is no reason to let fp16 move them as far."""
    fine = student("bert", MID, SCHEMES["static"])
    ranges = {
        name: (source._replace(scale=64 * source.scale), result._replace(scale=64 * result.scale))
        for name, (source, result) in fine.ranges.items()
    }
    coarse = dataclasses.replace(fine, ranges=ranges)
    with pytest.raises(VerificationError, match=r'fp16 arithmetic .* Take activations = "dynamic_int8" or "float"'):
        coreml.export(coarse, BUCKETS, tmp_path / "no.mlpackage")
    assert not list(tmp_path.iterdir())


def spoiling(change: Callable[[nn.Module], None]) -> Callable[..., nn.Module]:
    def spoiled(frozen: FrozenStudent, **options: Any) -> nn.Module:
        model = network(frozen, **options)
        with torch.no_grad():
            change(model)
        return model

    return spoiled


def _transposed(model: nn.Module) -> None:
    weight = model.get_parameter("layers.0.query.weight")
    weight.copy_(weight.T.clone())


def _without_bias(model: nn.Module) -> None:
    model.get_parameter("layers.0.up.bias").zero_()


def _overflowing(model: nn.Module) -> None:
    """The same answers, through values that fp16 cannot hold."""
    model.get_submodule("layers.0.ffn_norm").register_forward_hook(lambda *call: call[2] * 3e4 / 3e4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_transposed, r"codes of layers\.0\.query\.weight"),
        (_without_bias, r"layers\.0\.up\.bias is not in the file"),
        (_overflowing, r"fp16 arithmetic .* leave the range of fp16, first in mul"),
    ],
)
def test_a_conversion_that_changes_the_student_is_refused(
    change: Callable[[nn.Module], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "network", spoiling(change))
    with pytest.raises(VerificationError, match=message):
        coreml.export(student("bert", bert.TINY, QuantScheme()), [8], tmp_path / "no.mlpackage")
    assert not list(tmp_path.iterdir())


def test_floats_where_integers_were_promised_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def announce(model: nn.Module, frozen: FrozenStudent) -> None:
        rest = {name: item for name, item in frozen.quantized.items() if "down" not in name}
        told(model, dataclasses.replace(frozen, quantized=rest))

    told = convert.announce
    monkeypatch.setattr(convert, "announce", announce)
    with pytest.raises(StageError, match=r"left layers\.0\.down\.weight .* float"):
        coreml.export(student("bert", bert.TINY, QuantScheme()), [8], tmp_path / "no.mlpackage")


def test_a_tied_weight_is_stored_once(
    decoder: tuple[FrozenStudent, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, path = decoder
    sizes = [op.outputs[0].type for op in parse(path).main.operations if op.kind[:5] == "const"]
    assert sum(kind is not None and kind.shape == (96, 32) for kind in sizes) == 1

    def untied(model: nn.Module) -> None:
        head = model.get_submodule("head")
        head.weight = nn.Parameter(head.get_parameter("weight").clone())

    monkeypatch.setattr(convert, "network", spoiling(untied))
    with pytest.raises(VerificationError, match=r"embedding\.weight a second time, as floats"):
        coreml.export(frozen, [8], tmp_path / "twice.mlpackage")
