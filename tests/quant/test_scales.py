"""How scales are chosen in training: fitted now and then, or learned, and continued where a run was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from scaled import (
    BY_CHANNEL,
    BY_GROUP,
    CHANNELS,
    CONFIG,
    EVERY,
    GROUPS,
    HELD,
    TENSORS,
    holders,
    loss_of,
    student,
    train,
)
from scaled import fit_often as fit_often
from torch import Tensor, nn

from edgedistill import training
from edgedistill.errors import SpecError
from edgedistill.quant.fake import DynamicQuantLinear, QuantEmbedding, StaticQuantLinear, freeze_observers, prepare
from edgedistill.quant.grid import SCALE_MIN, fake_quantize, scales_of
from edgedistill.quant.scales import FittedScales, LearnedScales, ScaleRule, holder_of, rule_of
from edgedistill.specs import DistilSpec, Silent
from edgedistill.specs.quant import QuantScheme, WeightGrid
from edgedistill.students.bert.module import build

pytestmark = pytest.mark.usefixtures("fit_often")


def test_a_stage_can_ask_for_every_rule_and_asks_for_absmax() -> None:
    field = DistilSpec.model_fields["scales"]
    assert get_args(field.annotation) == get_args(ScaleRule)
    assert field.default == "absmax"
    values = {"name": "x", "epochs": 1, "learning_rate": 0.1, "losses": [{"loss": "soft_kl"}], "scales": "mse"}
    assert DistilSpec.decode({**values, "fake_quant": True}, "here").scales == "mse"
    with pytest.raises(SpecError, match='scales = "mse" needs fake_quant = true'):
        DistilSpec.decode(values, "here")


@pytest.mark.parametrize("rule", get_args(ScaleRule))
def test_the_rule_is_read_off_the_state_dict_and_parameters_keep_their_names(rule: ScaleRule) -> None:
    plain, model = build(CONFIG), student(BY_GROUP, rule)
    extra = model.state_dict().keys() - plain.state_dict().keys()
    assert rule_of(model.state_dict()) == rule
    assert plain.state_dict().keys() <= model.state_dict().keys()
    assert all(".weight_scales." in name for name in extra)
    assert bool(extra) == (rule != "absmax")
    quantized = [tensor for tensor in TENSORS if tensor.kind != "float"]
    assert sum(1 for _ in holders(model)) == (0 if rule == "absmax" else len(quantized))
    again = student(BY_GROUP, rule, seed=1)
    again.load_state_dict(model.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("rule", HELD)
def test_held_scales_start_where_the_squared_error_is_least(rule: ScaleRule) -> None:
    model = student(BY_GROUP, rule)
    for layer in (model.layers[0].up, model.embeddings.word, model.classifier):
        expected = scales_of(layer.weight, GROUPS, "bf16", "mse")
        assert torch.allclose(layer.weight_scales.stored(), expected, rtol=2**-8)


def test_fitted_scales_follow_the_weight_every_so_many_forwards_until_they_are_frozen() -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    holder = holder_of(weight, CHANNELS, "fp16", "mse")
    assert isinstance(holder, FittedScales)
    at = [holder(weight * (1 + step)).clone() for step in range(2 * EVERY + 1)]
    for step, seen in enumerate(at):
        fitted = weight * (1 + step // EVERY * EVERY)
        assert torch.equal(seen, scales_of(fitted, CHANNELS, "fp16", "mse"))
    holder.eval()
    assert torch.equal(holder(weight), at[-1])
    freeze_observers(holder)
    holder.train()
    assert all(torch.equal(holder(weight), at[-1]) for _ in range(2 * EVERY))


def test_learned_scales_are_trained_as_the_paper_says_and_seen_as_they_are_stored() -> None:
    layer = nn.Sequential(nn.Linear(32, 3))
    prepare(layer, QuantScheme(weights=CHANNELS, activations="float", scale_dtype="bf16"), [], "learned")
    linear = layer[0]
    held = linear.weight_scales
    assert isinstance(held, LearnedScales)
    with torch.no_grad():
        held.range.mul_(1.01)  # between two numbers of bf16
    scales = held.stored().detach()
    assert torch.equal(scales, scales.bfloat16().float())
    assert not torch.equal(scales * 7, held.range)
    x, upstream = torch.randn(5, 32), torch.randn(5, 3)
    out = layer(x)
    leaf, weight = scales.clone().requires_grad_(), linear.weight.detach().clone().requires_grad_()
    expected = nn.functional.linear(x, fake_quantize(weight, CHANNELS, "bf16", leaf), linear.bias)
    assert torch.equal(out, expected)
    (out * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert torch.equal(held.range.grad, leaf.grad)
    assert torch.equal(linear.weight.grad, weight.grad)


@pytest.mark.parametrize("grid", [CHANNELS, GROUPS, WeightGrid()], ids=lambda grid: grid.label)
def test_training_scales_alone_lowers_the_squared_error(grid: WeightGrid) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) ** 3

    def error(scales: Tensor) -> Tensor:
        return (fake_quantize(weight, grid, "fp16", scales) - weight).square().sum()

    holder = LearnedScales(weight, grid, "fp16")
    with torch.no_grad():
        holder.range.copy_(scales_of(weight, grid).flatten() * grid.code_max)
    optimizer = torch.optim.AdamW(holder.parameters(), 5e-3, weight_decay=0)
    for _ in range(300):
        optimizer.zero_grad()
        error(holder(weight)).backward()
        optimizer.step()
    plain, best = (float(error(scales_of(weight, grid, "fp16", rule))) for rule in ("absmax", "mse"))
    # the error has several valleys, and descent finds the nearest: at least half of what the search gains
    assert float(error(holder(weight)).detach()) < (plain + best) / 2 + 0.02 * plain * (grid.bits == 8)


def test_a_learned_scale_is_never_below_the_least_and_can_grow_again() -> None:
    holder = LearnedScales(torch.zeros(2, 32), CHANNELS, "fp16")
    optimizer = torch.optim.SGD(holder.parameters(), 1.0)
    for sign in (1.0, -1.0):
        optimizer.zero_grad()
        (sign * holder(torch.zeros(2, 32)).sum()).backward()
        optimizer.step()
        assert bool((holder.stored() >= SCALE_MIN).all())
    assert bool((holder.stored() > 0.1).all())


@pytest.mark.parametrize("activations", ["dynamic_int8", "static_int8", "float"])
@pytest.mark.parametrize("rule", HELD)
def test_every_parameter_gets_a_gradient(rule: ScaleRule, activations: Any) -> None:
    model = student(BY_CHANNEL.model_copy(update={"activations": activations}), rule).train()
    loss_of(model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    for layer in holders(model):
        if isinstance(layer, LearnedScales):
            assert float(layer.range.grad.abs().sum()) > 0


def test_integer_layers_give_their_scales_the_gradient_of_the_float_product() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(9, 32, generator=generator), torch.randn(3, 32, generator=generator)
    upstream, out = torch.randn(9, 3, generator=generator), x @ weight.t()
    upstream[(out == out.max()) | (out == out.min())] = 0  # the ends of a static range count as clipped
    found = {}
    for kind in (DynamicQuantLinear, StaticQuantLinear):
        layer = kind(32, 3)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.zero_()
        layer.grid = CHANNELS
        layer.weight_scales = LearnedScales(weight, CHANNELS, "fp16")
        (layer(x) * upstream).sum().backward()
        found[kind] = layer.weight_scales.range.grad
    scales = scales_of(weight, CHANNELS, "fp16", "mse").requires_grad_()
    (x @ fake_quantize(weight, CHANNELS, "fp16", scales).t() * upstream).sum().backward()
    for kind, grad in found.items():  # inputs are rounded to 1/255 of their range, the static output too
        assert torch.allclose(grad, scales.grad, atol=0.02 * float(scales.grad.abs().max())), kind


@pytest.mark.parametrize("rule", HELD)
@pytest.mark.parametrize("grid", [CHANNELS, GROUPS], ids=lambda grid: grid.label)
def test_an_embedding_quantizes_all_or_only_looked_up_rows_alike(rule: ScaleRule, grid: WeightGrid) -> None:
    few, many = torch.tensor([[3, 3, 49]]), torch.cat([torch.tensor([3, 3, 49]), torch.arange(50)])
    gradients = []
    for ids, used in ((few, 1), (many, 3)):
        torch.manual_seed(0)
        table = QuantEmbedding(50, 64)
        table.grid, table.weight_scales = grid, holder_of(table.weight, grid, "fp16", rule)
        out = table(ids)
        rows = out[0] if used == 1 else out[:3]
        (rows * torch.arange(64)).sum().backward()
        scale_grad = table.weight_scales.range.grad if rule == "learned" else torch.zeros(0)
        gradients.append((rows.detach(), table.weight.grad, scale_grad))
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-5)


def test_ranges_are_not_decayed(tmp_path: Path) -> None:
    model = student(BY_GROUP, "learned")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    recipe = training.Recipe(5, 0.1, "constant", weight_decay=1.0, gradient_clip=1.0)

    def nothing(step: int) -> Tensor:
        return torch.stack([(parameter * 0).sum() for parameter in model.parameters()]).sum()

    training.train(model, nothing, recipe, tmp_path, Silent())
    after = dict(model.named_parameters())
    assert float(after["classifier.weight"].detach().abs().sum()) < float(before["classifier.weight"].abs().sum())
    assert all(torch.equal(after[name], before[name]) for name in before if name.endswith(".range"))


@pytest.mark.parametrize("rule", HELD)
@pytest.mark.parametrize("activations", ["dynamic_int8", "static_int8"])
def test_a_run_that_is_cut_and_continued_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: ScaleRule, activations: Any
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_S", 0)
    scheme = BY_CHANNEL.model_copy(update={"activations": activations})
    for name in ("cut", "whole"):
        (tmp_path / name).mkdir()
    whole = student(scheme, rule)
    train(whole, tmp_path / "whole")
    for stop in (7, 18):  # between two fits, and after scales froze
        with pytest.raises(KeyboardInterrupt):
            train(student(scheme, rule), tmp_path / "cut", stop=stop)
    model = student(scheme, rule)
    train(model, tmp_path / "cut")
    assert [
        name for name, value in whole.state_dict().items() if not torch.equal(value, model.state_dict()[name])
    ] == []


@pytest.mark.parametrize("scheme", [BY_CHANNEL, BY_GROUP], ids=["channels", "groups"])
@pytest.mark.parametrize("rule", HELD)
def test_training_under_determinism_repeats_itself_and_lowers_the_loss(
    tmp_path: Path, rule: ScaleRule, scheme: QuantScheme
) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        models = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            models.append(student(scheme, rule))
            before = float(loss_of(models[-1]).detach())
            train(models[-1], tmp_path / name)
    finally:
        torch.use_deterministic_algorithms(False)
    one, two = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert float(loss_of(models[-1]).detach()) < 0.8 * before
    moved = [not torch.equal(value, student(scheme, rule).state_dict()[name]) for name, value in one.items()]
    assert all(moved)
