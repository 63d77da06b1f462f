"""Scales that were fitted or learned are those of the frozen student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scaled import (
    BY_CHANNEL,
    BY_GROUP,
    CHANNELS,
    CONFIG,
    EVERY,
    HELD,
    TENSORS,
    batch,
    student,
    train,
)
from scaled import fit_often as fit_often
from torch import Tensor, nn

from edgedistill import quant
from edgedistill.errors import StageError
from edgedistill.quant.fake import prepare
from edgedistill.quant.frozen import freeze
from edgedistill.quant.grid import codes_of, quantize, scales_of
from edgedistill.quant.scales import ScaleRule
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import bert
from edgedistill.students.bert.module import build

pytestmark = pytest.mark.usefixtures("fit_often")


@pytest.mark.parametrize("activations", ["dynamic_int8", "static_int8", "float"])
@pytest.mark.parametrize("rule", HELD)
def test_freezing_takes_the_held_scales_and_computes_the_same_logits(
    tmp_path: Path, rule: ScaleRule, activations: Any
) -> None:
    scheme = BY_CHANNEL.model_copy(update={"activations": activations})
    model = student(scheme, rule)
    train(model, tmp_path)
    frozen = freeze(model.eval(), "bert", CONFIG, scheme, {})
    layer = model.layers[0].up
    stored = frozen.quantized["layers.0.up.weight"]
    scales = layer.weight_scales.stored().detach()
    assert torch.equal(torch.from_numpy(stored.scales), scales)
    assert torch.equal(torch.from_numpy(stored.codes), codes_of(layer.weight, scales, layer.grid))
    assert not torch.equal(scales, scales_of(layer.weight, layer.grid))
    ids, mask = batch(9)
    with torch.no_grad():
        ours, theirs = frozen.to_module()(ids, mask).logits, model(ids, mask).logits
    if activations == "float":
        assert torch.allclose(ours, theirs, atol=1e-5)
    else:
        assert torch.equal(ours, theirs)
    assert int(frozen.quantized["classifier.weight"].codes.min()) >= -127
    assert min(int(frozen.quantized[t.name].codes.min()) for t in TENSORS if t.kind == "linear") == -8


@pytest.mark.parametrize("rule", HELD)
def test_a_frozen_student_of_groups_survives_the_disk_and_leaves_the_trained_one_alone(
    tmp_path: Path, rule: ScaleRule
) -> None:
    model = student(BY_GROUP, rule)
    train(model, tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = freeze(model.train(), "bert", CONFIG, BY_GROUP, {})  # also in training mode nothing is fitted again
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    frozen.save(tmp_path)
    loaded = quant.FrozenStudent.load(tmp_path)
    assert all((loaded.quantized[n].scales == t.scales).all() for n, t in frozen.quantized.items())


@pytest.mark.parametrize("rule", HELD)
def test_scales_of_one_grid_are_not_frozen_for_another(rule: ScaleRule) -> None:
    model = student(BY_GROUP, rule)
    with pytest.raises(
        StageError, match="was trained with scales of int4 per group of 32 in bf16, and the scheme says"
    ):
        freeze(model, "bert", CONFIG, QuantScheme(), {})
    with pytest.raises(StageError, match="int4 per group of 32 in fp16"):
        freeze(model, "bert", CONFIG, BY_GROUP.model_copy(update={"scale_dtype": "fp16"}), {})


@pytest.mark.parametrize("rule", HELD)
def test_a_weight_that_its_groups_do_not_fit_is_refused_when_it_is_prepared(rule: ScaleRule) -> None:
    with pytest.raises(StageError, match="does not fit its grid: groups of 32 need a matrix"):
        prepare(build(bert.TINY), BY_GROUP, bert.tensors(bert.TINY), rule)


@pytest.mark.parametrize("rule", HELD)
def test_a_kernel_holds_one_scale_for_each_output_channel(rule: ScaleRule) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, groups=1), nn.Conv2d(4, 4, 3, groups=4))
    weight = model[1].weight.detach().clone()
    prepare(model, BY_GROUP, [], rule).train()
    model(torch.randn(2, 3, 9, 9)).square().sum().backward()
    for layer in model:
        assert layer.grid == CHANNELS
        assert layer.weight_scales.stored().shape == (4,)
        assert float(layer.weight.grad.abs().sum()) > 0
    assert torch.allclose(model[1].weight_scales.stored(), scales_of(weight, CHANNELS, "bf16", "mse"))


class Tied(nn.Module):
    """A table that is also the head, as in small language models."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 32), nn.Linear(32, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(ids))
        return out


@pytest.mark.parametrize("rule", HELD)
def test_a_tied_weight_has_one_set_of_scales(rule: ScaleRule) -> None:
    model = Tied()
    tensors = [bert.StoredTensor("table.weight", (20, 32), "embedding")]
    prepare(model, BY_CHANNEL, tensors, rule).train()
    assert model.head.weight_scales is model.table.weight_scales
    for _ in range(EVERY + 1):
        model(torch.arange(20)).square().sum().backward()
    scales = model.head.weight_scales.stored()
    on_grid = quantize(model.head.weight, scales, CHANNELS)
    assert int(on_grid.min().detach()) == -8
