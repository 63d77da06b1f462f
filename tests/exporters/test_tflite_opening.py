"""Tensors that are inputs while the network is converted: the file is the one that the converter's own pairs give."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from edgedistill.errors import VerificationError
from edgedistill.exporters import tflite
from edgedistill.exporters.tflite import graph, opening, weights
from edgedistill.exporters.tflite.reading import parse
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.specs import QuantScheme
from edgedistill.students import bert, part


@pytest.fixture(scope="module")
def frozen() -> FrozenStudent:
    """No norm of it is neutral."""
    torch.manual_seed(0)
    model = part("bert", "module").build(bert.TINY)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return freeze(model, "bert", bert.TINY, QuantScheme(), {})


def operators(path: Path) -> Counter[tuple[int, int]]:
    """How many operators of each code and version."""
    _, model = parse(path)
    codes = [model.operatorCodes[operator.opcodeIndex] for s in model.subgraphs for operator in s.operators]
    return Counter((code.builtinCode, code.version) for code in codes)


def test_both_ways_give_the_same_operators_and_numbers(
    frozen: FrozenStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opening.opens(frozen)
    tflite.export(frozen, (8, 16), tmp_path / "opened.tflite")
    for module in (tflite, graph, weights):
        monkeypatch.setattr(module, "opens", lambda _: False)
    tflite.export(frozen, (8, 16), tmp_path / "paired.tflite")
    opened, paired = tmp_path / "opened.tflite", tmp_path / "paired.tflite"
    assert operators(opened) == operators(paired)
    assert abs(opened.stat().st_size - paired.stat().st_size) < 100
    runners = tflite.load(opened), tflite.load(paired)
    assert runners[0].signatures == runners[1].signatures
    assert list(runners[0].signatures["length_8"].inputs[0]) == ["input_ids", (1, 8), "int32"]


def test_tensors_that_change_places_are_found(
    frozen: FrozenStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by its numbers the student's, but two of them in one another's layer."""
    real = opening.opened_names

    def swapped(student: FrozenStudent, one: str, two: str) -> list[str]:
        return [{one: two, two: one}.get(name, name) for name in real(student)]

    close = opening.close
    for one, two in (
        ("layers.0.query.weight", "layers.0.key.weight"),
        ("layers.0.attention_norm.weight", "layers.0.ffn_norm.weight"),
    ):

        def wrong(edit: object, student: FrozenStudent, one: str = one, two: str = two) -> object:
            with monkeypatch.context() as patch:
                patch.setattr(opening, "opened_names", lambda student: swapped(student, one, two))
                return close(edit, student)  # type: ignore[arg-type]

        monkeypatch.setattr(weights, "close", wrong)
        with pytest.raises(VerificationError, match=r"bias is not in the file|does not compute"):
            tflite.export(frozen, (8,), tmp_path / "no.tflite")
        assert not list(tmp_path.iterdir())
