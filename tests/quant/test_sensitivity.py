"""What 4 bits cost in each tensor, and which tensors get them within a budget."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgedistill.errors import SpecError, StageError
from edgedistill.quant.frozen import freeze
from edgedistill.quant.sensitivity import NARROW, WIDE, allocate, mean_kl, measure, narrowable, sizes_of
from edgedistill.specs.quant import QuantScheme, WeightGrid
from edgedistill.students import StoredTensor, bert
from edgedistill.students.bert.module import BertClassifier, build

CONFIG = bert.Config(layers=2, width=64, heads=4, ffn=96, vocabulary=150, max_length=12, classes=5)
TENSORS = bert.tensors(CONFIG)
SCHEME = QuantScheme()
FRAGILE = "layers.0.down.weight"


def student(fragile: str | None = None) -> BertClassifier:
    torch.manual_seed(0)
    model = build(CONFIG)
    with torch.no_grad():
        model.classifier.weight.mul_(5)
        if fragile is not None:
            # an outlier in each group makes the step of 4 bits larger than every other weight; the input that it
            # meets is silenced, so that it changes nothing else
            weight = model.get_parameter(fragile)
            weight[:, ::32] = 30 * weight.abs().max()
            up = model.get_submodule(fragile.replace("down.weight", "up"))
            up.weight[::32] = 0
    return model.eval()


def logits(module: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, CONFIG.vocabulary, (64, CONFIG.max_length), generator=generator)
    with torch.no_grad():
        out: Tensor = module(ids, torch.ones_like(ids)).logits
    return out


def test_kl_is_zero_for_equal_logits_and_as_by_hand() -> None:
    p, q = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, torch.log(torch.tensor(3.0))], [4.0, 5.0]])
    assert mean_kl(p, p) == 0
    # first row 0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75), second row 0: logits count up to a constant
    expected = 0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2 / 3))
    assert mean_kl(p, q) == pytest.approx(float(expected) / 2, abs=1e-7)


def test_each_quantized_tensor_is_measured_alone_against_the_float_student() -> None:
    model = student()
    found = measure(model, "bert", CONFIG, SCHEME, logits)
    assert list(found.increases) == [tensor.name for tensor in TENSORS if tensor.kind != "float"]
    frozen = freeze(model, "bert", CONFIG, SCHEME, {})
    assert found.scheme_kl == pytest.approx(mean_kl(logits(model), logits(frozen.to_module())))
    assert 0 < found.scheme_kl < 0.01
    name = "layers.1.up.weight"
    alone = freeze(model, "bert", CONFIG, SCHEME.model_copy(update={"layers": {name: NARROW}}), {})
    assert found.increases[name] == mean_kl(logits(model), logits(alone.to_module())) - found.scheme_kl
    assert sum(value > 0 for value in found.increases.values()) > len(found.increases) / 2


def test_a_layer_made_fragile_on_purpose_keeps_its_8_bits_as_long_as_any_may() -> None:
    model = student(FRAGILE)
    found = measure(model, "bert", CONFIG, SCHEME, logits)
    worst = max(found.increases, key=lambda name: found.increases[name])
    assert worst == FRAGILE
    sizes = sizes_of(TENSORS, SCHEME)
    room = sizes[FRAGILE][0] - sizes[FRAGILE][1]
    budget = sum(small for _, small in sizes.values()) + room
    layers = allocate(found.increases, sizes, budget)
    assert layers == {name: WIDE if name == FRAGILE else NARROW for name in sizes}

    def kl_with(choice: dict[str, WeightGrid]) -> float:
        scheme = SCHEME.model_copy(update={"layers": choice})
        return mean_kl(logits(model), logits(freeze(model, "bert", CONFIG, scheme, {}).to_module()))

    assert kl_with(layers) < 0.5 * kl_with(dict.fromkeys(sizes, NARROW))


def test_a_budget_is_met_to_the_byte_of_the_frozen_student() -> None:
    model, sizes = student(), sizes_of(TENSORS, SCHEME)
    found = measure(model, "bert", CONFIG, SCHEME, logits)
    floats = 4 * sum(torch.Size(tensor.shape).numel() for tensor in TENSORS if tensor.kind == "float")
    most, least = (sum(pair[index] for pair in sizes.values()) for index in (0, 1))
    for budget in (most, most - 1, (most + least) // 2, least + 1, least):
        layers = allocate(found.increases, sizes, budget)
        frozen = freeze(model, "bert", CONFIG, SCHEME.model_copy(update={"layers": layers}), {})
        taken = sum(sizes[name][0 if layers[name] == WIDE else 1] for name in sizes)
        assert frozen.parameter_bytes - floats == taken <= budget
    assert set(allocate(found.increases, sizes, most).values()) == {WIDE}
    assert set(allocate(found.increases, sizes, least).values()) == {NARROW}


def test_a_budget_that_nothing_meets_is_refused_with_the_least_that_would_do() -> None:
    sizes = sizes_of(TENSORS, SCHEME)
    least = sum(small for _, small in sizes.values())
    with pytest.raises(SpecError, match=rf"{least - 1} bytes cannot be met.*int4 per group of 32.* {least} bytes"):
        allocate(dict.fromkeys(sizes, 0.1), sizes, least - 1)


def best(cost: dict[str, float], sizes: dict[str, tuple[int, int]], budget: int) -> float:
    """The least sum of increases, by trying every subset."""
    found = []
    for narrow in itertools.product((False, True), repeat=len(sizes)):
        taken = sum(pair[which] for pair, which in zip(sizes.values(), narrow, strict=True))
        if taken <= budget:
            found.append(sum(cost[name] for name, which in zip(sizes, narrow, strict=True) if which))
    return min(found)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("equal", [True, False], ids=["equal sizes", "different sizes"])
def test_the_choice_is_the_best_for_equal_sizes_and_within_its_bound_for_others(seed: int, equal: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    names = [f"t{n}" for n in range(2 + seed % 8)]
    cost = {name: float(value) for name, value in zip(names, torch.rand(len(names), generator=random), strict=True)}
    large = [1000] * len(names) if equal else torch.randint(100, 2000, (len(names),), generator=random).tolist()
    sizes = {name: (size, size * 9 // 16) for name, size in zip(names, large, strict=True)}
    most, least = (sum(pair[index] for pair in sizes.values()) for index in (0, 1))
    budget = least + int(float(torch.rand(1, generator=random)) * (most - least))
    layers = allocate(cost, sizes, budget)
    narrow = [name for name in names if layers[name] == NARROW]
    assert sum(sizes[name][layers[name] == NARROW] for name in names) <= budget
    reached, optimum = sum(cost[name] for name in narrow), best(cost, sizes, budget)
    if equal:
        assert reached == pytest.approx(optimum)
    assert optimum <= reached + 1e-12
    assert reached <= optimum + max((cost[name] for name in names), default=0) + 1e-12
    for name in narrow:  # none of them is narrow for nothing
        assert sum(sizes[n][layers[n] == NARROW] for n in names if n != name) + sizes[name][0] > budget


def test_a_decrease_is_noise_and_no_reason_to_narrow_more_than_is_needed() -> None:
    sizes = {"a": (100, 60), "b": (100, 60), "c": (30, 40)}
    assert allocate({"a": -0.1, "b": -0.2, "c": 0.0}, sizes, 230) == dict.fromkeys(sizes, WIDE)
    chosen = allocate({"a": -0.1, "b": 0.2, "c": -1.0}, sizes, 190)
    assert chosen == {"a": NARROW, "b": WIDE, "c": WIDE}, "c would only grow"


@pytest.mark.parametrize(
    ("increases", "reason"),
    [({"a": 0.1}, "b is only in one"), ({"a": 0.1, "b": float("nan")}, "sensitivity of b is not a finite")],
)
def test_what_cannot_be_compared_is_refused(increases: dict[str, float], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        allocate(increases, {"a": (2, 1), "b": (2, 1)}, 3)


def test_a_kernel_gets_channels_and_a_width_without_groups_is_left_alone() -> None:
    tensors = [
        StoredTensor("conv.weight", (8, 3, 3, 3), "convolution"),
        StoredTensor("odd.weight", (4, 31), "linear"),
        StoredTensor("fits.weight", (4, 64), "linear"),
        StoredTensor("fits.bias", (4,), "float"),
    ]
    grids = narrowable(tensors, SCHEME)
    assert grids == {"conv.weight": WeightGrid(bits=4), "fits.weight": NARROW}
    assert sizes_of(tensors, SCHEME) == {
        "conv.weight": (8 * 27 + 8 * 4, 8 * 27 // 2 + 8 * 4),
        "fits.weight": (4 * 64 + 4 * 4, 4 * 64 // 2 + 4 * 2 * 4),
    }
    assert sizes_of(tensors, QuantScheme(weights=NARROW)) == {}
    static = QuantScheme(activations="static_int8")
    assert narrowable(tensors[1:], static) == {}, "a static layer has one scale for each channel"
    assert narrowable(tensors[1:], static, WeightGrid(bits=4)).keys() == {"odd.weight", "fits.weight"}


@pytest.mark.parametrize("activations", ["float", "static_int8"])
def test_other_activations_are_measured_too(activations: Any) -> None:
    from edgedistill.quant.fake import prepare

    scheme = QuantScheme(activations=activations)
    model = prepare(student(), scheme, TENSORS, "learned").train()
    logits(model)
    found = measure(model.eval(), "bert", CONFIG, scheme, logits, narrow=WeightGrid(bits=4))
    assert found.scheme_kl > 0
    assert len(found.increases) == sum(tensor.kind != "float" for tensor in TENSORS)
    assert all(value > -found.scheme_kl for value in found.increases.values())


def test_logits_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(StageError, match="the float student gives logits that are not finite"):
        measure(student(), "bert", CONFIG, SCHEME, lambda module: logits(module) * float("nan"))
