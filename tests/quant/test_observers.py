"""Ranges of static activations: what a batch holds, or clipped where that moves its values least."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgedistill.errors import SpecError, StageError
from edgedistill.quant import freeze, freeze_observers, prepare
from edgedistill.quant.activations import quantize_static, range_of
from edgedistill.quant.layers import StaticQuantAddend, StaticQuantLinear, StaticQuantPoint
from edgedistill.quant.observers import Observer, limits_of
from edgedistill.specs import DistilSpec, Profile
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import bert
from edgedistill.students.bert.module import BertClassifier, build

STATIC = QuantScheme(activations="static_int8")
TENSORS = bert.tensors(bert.TINY)


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def outlier(x: Tensor, size: float) -> Tensor:
    return torch.cat([x, torch.tensor([size])])


BATCHES: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: normal(20_000),
    "one large value": lambda: outlier(normal(200_000), 40.0),
    "one very negative value": lambda: outlier(normal(200_000), -40.0),
    "heavy tails": lambda: normal(50_000) ** 3,
    "behind a relu": lambda: normal(50_000).relu() ** 2,
    "negative only": lambda: -(normal(50_000).abs() ** 2.5),
}


def moved(x: Tensor, limits: Tensor) -> float:
    """Mean square of what the grid of these limits changes."""
    grid = range_of(*limits.tolist())
    return float((quantize_static(x, grid) * grid.scale - x).double().square().mean())


def searched(x: Tensor) -> float:
    """The least that any pair of limits moves, on a fine lattice, by the values themselves."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    shares = [2.0 ** (-n / 6) for n in range(18)]
    return min(moved(x, torch.tensor([low * a, high * b])) for a in shares for b in shares)


@pytest.mark.parametrize("name", BATCHES)
def test_clipped_limits_move_the_values_nearly_as_little_as_any(name: str) -> None:
    x = BATCHES[name]()
    clipped, whole = limits_of(x, "mse"), limits_of(x, "min_max")
    assert whole.tolist() == [float(x.min()), float(x.max())]
    assert moved(x, clipped) <= moved(x, whole) * 1.01  # a scale is an fp16 number
    assert moved(x, clipped) <= 1.1 * searched(x)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_one_value_among_many_is_clipped_on_its_side(side: float) -> None:
    x = outlier(normal(1_000_000), 40 * side) * side
    low, high = limits_of(x, "mse").tolist()
    assert 4 < high < 25
    assert low == pytest.approx(float(x.min()), rel=0.4)
    assert moved(x, torch.tensor([low, high])) < 0.5 * moved(x, limits_of(x, "min_max"))


@pytest.mark.parametrize(
    "x",
    [torch.zeros(9), torch.linspace(-1, 1, 4001), torch.full((5,), 3.0), torch.full((5,), -3.0)],
    ids=["zero", "even", "positive", "negative"],
)
def test_what_has_no_tail_is_not_clipped(x: Tensor) -> None:
    """Clipping half a step is no loss to values that fill their range evenly, so a little may go."""
    low, high = limits_of(x, "mse").tolist()
    assert low == pytest.approx(min(float(x.min()), 0.0), rel=0.01)
    assert high == pytest.approx(max(float(x.max()), 0.0), rel=0.01)


@pytest.mark.parametrize("rule", ["min_max", "mse"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_student_that_diverges_is_told_so_and_keeps_its_ranges(bad: float, rule: str) -> None:
    model = spiked(rule).train()
    model(*tokens())
    with torch.no_grad():
        model.layers[0].up.bias[0] = bad
    with pytest.raises(StageError, match="training diverged; lower the learning rate"):
        model(*tokens())
    kept = [value for name, value in model.state_dict().items() if name.endswith("ranges")]
    assert kept
    assert all(bool(value.isfinite().all()) for value in kept)


def test_the_clipped_limits_of_batches_are_averaged() -> None:
    point = StaticQuantPoint().train()
    point.rule = "mse"
    first, second = outlier(normal(200_000), 40.0), outlier(normal(200_000, 1), 60.0)
    with torch.no_grad():
        point(first)
        assert torch.equal(point.ranges[0], limits_of(first, "mse"))
        point(second)
    expected = torch.lerp(limits_of(first, "mse"), limits_of(second, "mse"), Observer.MOMENTUM)
    assert torch.allclose(point.ranges[0], expected)
    freeze_observers(point)
    held = point.ranges.clone()
    point(first * 9)
    assert torch.equal(point.ranges, held)


def spiked(rule: str | None) -> BertClassifier:
    """A student of which one neuron in each feed-forward layer answers 30 times as much as the others, prepared."""
    torch.manual_seed(0)
    model = build(bert.TINY)
    with torch.no_grad():
        for layer in model.layers:
            layer.down.weight[3] *= 30
    if rule is not None:
        prepare(model, STATIC, TENSORS, ranges=rule)  # type: ignore[arg-type]
    return model


def tokens() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, bert.TINY.vocabulary, (64, bert.TINY.max_length), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids)


def test_every_place_follows_the_rule_but_sums_which_are_never_clipped() -> None:
    plain, clipped = spiked("min_max").train(), spiked("mse").train()
    assert plain.state_dict().keys() == clipped.state_dict().keys()
    extremes: dict[str, tuple[float, float]] = {}

    def keep(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            extremes[name] = float(given[0].min()), float(given[0].max())

        return seen

    tighter = 0
    for name, module in clipped.named_modules():
        if isinstance(module, StaticQuantAddend | StaticQuantLinear):
            module.register_forward_pre_hook(keep(name))
    with torch.no_grad():
        plain(*tokens())
        clipped(*tokens())
    for name, module in clipped.named_modules():
        if isinstance(module, StaticQuantAddend):
            assert module.ranges[0].tolist() == pytest.approx(extremes[name])
        elif isinstance(module, StaticQuantLinear):
            low, high = module.ranges[0].tolist()
            assert extremes[name][0] <= low <= 0
            assert 0 <= high <= extremes[name][1]
            tighter += (high - low) < 0.95 * (extremes[name][1] - extremes[name][0])
    assert tighter > 0
    tailed = outlier(normal(200_000), 40.0)
    for module in clipped.modules():
        if isinstance(module, StaticQuantAddend):
            module.ranges.fill_(float("nan"))
            module(tailed)
            assert module.ranges[0].tolist() == [float(tailed.min()), 40.0]
    names = {name for name, module in plain.named_modules() if isinstance(module, Observer)}
    assert names == {name for name, module in clipped.named_modules() if isinstance(module, Observer)}
    frozen = freeze(clipped.eval(), "bert", bert.TINY, STATIC, {})
    assert frozen.ranges != freeze(plain.eval(), "bert", bert.TINY, STATIC, {}).ranges


STAGE = {"name": "x", "epochs": 1, "learning_rate": 0.1, "losses": [{"loss": "soft_kl"}]}


def test_a_stage_that_cannot_observe_ranges_refuses_the_rule() -> None:
    assert DistilSpec.decode({**STAGE, "fake_quant": True}, "here").ranges == "min_max"
    assert DistilSpec.decode({**STAGE, "fake_quant": True, "ranges": "mse"}, "here").ranges == "mse"
    with pytest.raises(SpecError, match='ranges = "mse" needs fake_quant = true'):
        DistilSpec.decode({**STAGE, "ranges": "mse"}, "here")
    with pytest.raises(SpecError, match="min_max"):
        DistilSpec.decode({**STAGE, "fake_quant": True, "ranges": "percentile"}, "here")


def test_a_profile_with_dynamic_activations_refuses_it_too(tiny_profile: Profile) -> None:
    values = tiny_profile.model_dump(mode="json")
    values["stages"][-1]["ranges"] = "mse"
    with pytest.raises(SpecError, match=r'stage quantize: ranges = "mse" is for static activations.*static_int8'):
        Profile.decode(values, "my.toml")
    values["export"]["scheme"]["activations"] = "static_int8"
    assert Profile.decode(values, "my.toml").stages[-1].ranges == "mse"


@pytest.fixture
def tiny_profile() -> Profile:
    from edgedistill import catalog

    return catalog.load_profile("tiny")
