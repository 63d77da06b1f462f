"""The training loop: its schedules are what they say, and so are its curve, its average and its updates."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from regressed import RECIPE, Watch, net, regression, uncut
from regressed import checkpoint_always as checkpoint_always
from safetensors.torch import load_file
from torch import Tensor, nn

from edgedistill.errors import StageError
from edgedistill.specs import Silent
from edgedistill.store import CHECKPOINT
from edgedistill.training import Recipe, generator, learning_rate, train


@pytest.mark.usefixtures("checkpoint_always")
def test_the_checkpoint_holds_weights_buffers_average_and_optimizer(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(KeyboardInterrupt):
        train(model, regression(model, fail_at=10), RECIPE, tmp_path, Silent())
    names = set(load_file(tmp_path / CHECKPOINT / "state.safetensors"))
    assert {"model/first.weight", "model/norm.running_mean", "average/last.bias"} <= names
    assert sum(name.startswith("optimizer/") and name.endswith("exp_avg_sq") for name in names) == 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_stage_and_names_the_step(tmp_path: Path, bad: float) -> None:
    model = net()
    objective = regression(model)
    with pytest.raises(StageError, match=rf"loss is {bad} at step 7; lower the learning rate \(0\.01\)"):
        train(model, lambda step: objective(step) * (bad if step == 7 else 1), RECIPE, tmp_path, Silent())


def test_the_curve_is_the_mean_of_the_losses_since_the_last_point(tmp_path: Path) -> None:
    model, watch = net(), Watch()
    curve = train(model, regression(model), replace(RECIPE, steps=250), tmp_path, watch)
    assert [step for step, _ in curve] == list(range(2, 251, 2))
    for step, value in curve:
        assert value == pytest.approx(sum(watch.losses[step - 2 : step]) / 2, abs=1e-6)
    assert curve[-1][1] < 0.5 * curve[0][1]
    assert not model.training


def test_the_last_point_of_the_curve_is_the_last_step_even_where_it_does_not_divide(tmp_path: Path) -> None:
    model = net()
    curve = train(model, regression(model), replace(RECIPE, steps=207), tmp_path, Silent())
    assert [step for step, _ in curve][-2:] == [206, 207]


@pytest.mark.parametrize("schedule", ["one_cycle", "linear", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 9, 10, 1000])
def test_a_schedule_is_a_pure_function_that_warms_up_and_ends_near_zero(schedule: str, steps: int) -> None:
    recipe = replace(RECIPE, schedule=schedule, steps=steps, learning_rate=0.2)
    rates = [learning_rate(recipe, step) for step in range(steps)]
    assert [learning_rate(recipe, step) for step in reversed(range(steps))] == rates[::-1]
    assert all(0 < rate <= 0.2 for rate in rates)
    assert max(rates) == 0.2
    if schedule == "constant":
        assert set(rates) == {0.2}
    elif steps == 1000:
        top = rates.index(0.2)
        assert 99 <= top <= 100
        assert rates[0] == pytest.approx(0.2 / 100)
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert rates[-1] < 0.2 * 0.002
        middle = 0.5 if schedule == "linear" else 0.5 * (1 + math.cos(math.pi / 2))
        assert rates[550] == pytest.approx(0.2 * middle)
        quarter = 0.75 if schedule == "linear" else 0.5 * (1 + math.cos(math.pi / 4))
        assert rates[325] == pytest.approx(0.2 * quarter)


def test_the_rate_of_the_schedule_is_the_one_that_is_used(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    recipe = Recipe(steps=1, learning_rate=1e-3, schedule="linear", weight_decay=0.0, gradient_clip=1.0)
    before = model.weight.detach().clone()
    train(model, lambda step: model.weight.sum(), recipe, tmp_path, Silent())
    # the first step of Adam has the size of the rate, whatever the gradient is
    assert float((before - model.weight).detach()) == pytest.approx(1e-3, rel=1e-3)


def test_the_average_follows_its_closed_form(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    recipe = replace(RECIPE, steps=30, ema_decay=0.8, schedule="constant")
    seen = [model.weight.detach().clone()]

    def objective(step: int) -> Tensor:
        if step:
            seen.append(model.weight.detach().clone())
        return (model(torch.randn(4, 3, generator=generator(step))) - 1).square().mean()

    class LastWeights(Silent):
        def advance(self, units: int = 1, **facts: float) -> None:
            if len(seen) == 30 and facts:
                self.last = model.weight.detach().clone()

    watch = LastWeights()
    train(model, objective, recipe, tmp_path, watch)
    average = seen[0]
    for step, weights in enumerate([*seen[1:], watch.last]):
        decay = min(0.8, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(model.weight.detach(), average, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model.weight.detach(), watch.last, atol=1e-4)


def test_matrices_are_decayed_and_vectors_are_not(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    recipe = replace(RECIPE, steps=10, weight_decay=0.5, schedule="constant", ema_decay=0.0)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train(model, lambda step: 0.0 * (model.weight.sum() + model.bias.sum()), recipe, tmp_path, Silent())
    torch.testing.assert_close(model.weight.detach(), before["weight"] * (1 - 0.5 * 1e-2) ** 10)
    assert torch.equal(model.bias.detach(), before["bias"])


def test_frozen_parameters_stay_as_they_are(tmp_path: Path) -> None:
    model = net()
    model.first.requires_grad_(False)
    before = model.first.weight.clone()
    train(model, regression(model), RECIPE, tmp_path, Silent())
    assert torch.equal(model.first.weight, before)


def test_the_gradient_is_clipped_to_the_length_of_the_recipe(tmp_path: Path) -> None:
    def norm_of(clip: float) -> float:
        model = net()
        train(model, regression(model), replace(RECIPE, steps=1, gradient_clip=clip), tmp_path, Silent())
        return math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))

    unclipped = norm_of(1e9)
    assert unclipped > 0.5
    assert norm_of(0.1) == pytest.approx(0.1, rel=1e-3)


def test_before_step_is_told_every_step_in_order_also_when_continued(tmp_path: Path) -> None:
    model, steps = net(), []  # type: ignore[var-annotated]
    train(model, regression(model), replace(RECIPE, steps=5), tmp_path, Silent(), steps.append)
    assert steps == [0, 1, 2, 3, 4]


def test_generators_with_different_parts_are_unrelated() -> None:
    parts = [(s, p, n) for s in (0, 1, 2, 77) for p in (0, 1) for n in range(100)] + [
        (0,),
        (1,),
        (0, 0),
        (0, 1),
        (1, 0),
    ]
    draws = torch.stack([torch.randn(64, generator=generator(*part)) for part in parts])
    assert len({tuple(row.tolist()) for row in draws}) == len(parts)
    together = torch.corrcoef(draws)[~torch.eye(len(parts), dtype=torch.bool)]
    assert float(together.abs().max()) < 0.75
    assert float(together.mean()) == pytest.approx(0, abs=0.005)


def test_a_generator_depends_on_its_parts_alone() -> None:
    torch.manual_seed(1)
    first = torch.randn(8, generator=generator(3, 4))
    torch.manual_seed(2)
    assert torch.equal(torch.randn(8, generator=generator(3, 4)), first)
    assert not torch.equal(torch.randn(8, generator=generator(4, 3)), first)


def test_the_curve_is_json_that_reads_back(tmp_path: Path) -> None:
    _, curve = uncut(tmp_path)
    assert [tuple(point) for point in json.loads(json.dumps(curve))] == curve
