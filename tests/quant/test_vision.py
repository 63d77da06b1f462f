"""Image students on the grid: frozen ones answer as the trained ones did, bit for bit."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgedistill.errors import SpecError, StageError
from edgedistill.quant import FrozenStudent, freeze, freeze_observers, prepare
from edgedistill.quant.activations import HIGH, LOW, Range, range_of, sum_range_of, summand_range_of
from edgedistill.quant.kernels import static_sum
from edgedistill.quant.layers import StaticQuantConvolution, StaticQuantPoint
from edgedistill.quant.modules import FrozenLinear, FrozenPoint, FrozenSum
from edgedistill.quant.stored import QuantizedTensor
from edgedistill.specs.quant import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import cnn, part, vit
from edgedistill.students.cnn.module import fold

INT8, INT4, GROUPS = WeightGrid(), WeightGrid(bits=4), WeightGrid(bits=4, granularity=PerGroup())
WIDE = vit.Config(image_size=16, patch=8, layers=2, width=32, heads=2, ffn=64, classes=3)  # patches of 192 values


def scheme_of(grid: WeightGrid, activations: Any, head: WeightGrid = INT8) -> QuantScheme:
    return QuantScheme(weights=grid, head=head, activations=activations)


def images_of(config: Any, count: int = 12) -> tuple[Tensor, Tensor]:
    """Three classes: one picture, dark, as it is and bright."""
    random, family = np.random.default_rng(0), importlib.import_module(type(config).__module__)
    picture = torch.from_numpy(family.sample(config, family.signatures(config, ())[0], random)["pixels"])
    labels = torch.arange(count) % 3
    noise = 0.2 * torch.randn(count, *picture.shape[1:], generator=torch.Generator().manual_seed(0))
    return picture + (labels[:, None, None, None] - 1.0) * 0.8 + noise, labels


def train(model: nn.Module, config: Any, steps: int, rate: float = 5e-3) -> list[float]:
    images, labels = images_of(config)
    optimizer, losses = torch.optim.Adam(model.train().parameters(), rate), []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def trained(family: ModuleType, config: Any, scheme: QuantScheme, steps: int = 8) -> tuple[nn.Module, FrozenStudent]:
    torch.manual_seed(0)
    name = family.__name__.rpartition(".")[2]
    model = prepare(part(name, "module").build(config), scheme, family.tensors(config))
    train(model, config, steps)
    freeze_observers(model)
    train(model, config, 2)
    return model.eval(), freeze(model, name, config, scheme, {})


CNNS = [(cnn, cnn.TINY, scheme_of(grid, kind)) for grid in (INT8, INT4) for kind in ("static_int8", "float")]
VITS = [
    (vit, config, scheme_of(grid, kind, grid))
    for config, grid in ((vit.TINY, INT8), (WIDE, INT4))
    for kind in ("dynamic_int8", "static_int8", "float")
]
VITS.append((vit, WIDE, scheme_of(GROUPS, "dynamic_int8")))


@pytest.mark.parametrize(("family", "config", "scheme"), [*CNNS, *VITS])
def test_the_frozen_student_equals_the_fake_quantized_one_bit_for_bit(
    family: ModuleType, config: Any, scheme: QuantScheme
) -> None:
    model, frozen = trained(family, config, scheme)
    images, _ = images_of(config, 7)
    with torch.no_grad():
        ours, theirs = frozen.to_module()(images), model(images)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.pooled, theirs.pooled)
    assert float(theirs.logits.std()) > 1e-3
    static = scheme.activations == "static_int8"
    assert bool(frozen.ranges) == static
    assert bool(frozen.points) == static
    largest = {
        tensor.name: int(np.abs(frozen.quantized[tensor.name].codes).max())
        for tensor in frozen.tensors
        if tensor.name in frozen.quantized
    }
    assert all(largest[name] == grid.code_max for name, grid in frozen.grids().items())


@pytest.mark.parametrize(("family", "config"), [(cnn, cnn.TINY), (vit, vit.TINY)])
def test_a_static_student_round_trips_through_its_folder(family: ModuleType, config: Any, tmp_path: Path) -> None:
    _, frozen = trained(family, config, scheme_of(INT8, "static_int8"))
    frozen.save(tmp_path)
    loaded = FrozenStudent.load(tmp_path)
    images, _ = images_of(config, 5)
    with torch.no_grad():
        assert torch.equal(loaded.to_module()(images).logits, frozen.to_module()(images).logits)
    assert loaded.points == frozen.points
    assert loaded.signatures((4, 8))[0].name == "image"


@pytest.mark.parametrize("bits", [8, 4])
def test_a_static_student_learns_and_stays_near_the_float_one(bits: Any) -> None:
    torch.manual_seed(0)
    config = cnn.TINY
    twin = part("cnn", "module").build(config, batch_norm=True)
    train(twin, config, 40)
    model = fold(twin.eval())
    images, labels = images_of(config)
    with torch.no_grad():
        plain = model(images).logits
    scheme = scheme_of(WeightGrid(bits=bits), "static_int8")
    losses = train(prepare(model, scheme, cnn.tensors(config)), config, 40, 1e-3)
    assert losses[-1] < 0.3
    freeze_observers(model)
    frozen = freeze(model.eval(), "cnn", config, scheme, {})
    with torch.no_grad():
        logits = frozen.to_module()(images).logits
    assert torch.equal(logits.argmax(1), labels)
    assert float((logits - plain).abs().max()) < 3 * float(plain.abs().max())


def test_every_convolution_and_point_of_a_cnn_is_on_its_grid() -> None:
    scheme = QuantScheme(weights=INT4, activations="static_int8", layers={"stem.conv.weight": INT8})
    model, frozen = trained(cnn, cnn.TINY, scheme)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert all(isinstance(module, StaticQuantConvolution) for module in layers.values())
    bits = {name: grid.bits for name, grid in frozen.grids().items()}
    assert {bits[f"{name}.weight"] for name in layers if not name.startswith("stem")} == {4}
    assert bits["stem.conv.weight"] == 8
    assert all(frozen.quantized[f"{name}.weight"].scales.ndim == 1 for name in layers)
    module = frozen.to_module()
    seen: dict[str, Tensor] = {}
    for name, place in module.named_modules():
        if isinstance(place, FrozenPoint | FrozenSum):
            place.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        module(images_of(cnn.TINY)[0])
    assert seen.keys() == frozen.points.keys()
    for name, values in seen.items():
        scale, zero = frozen.points[name]
        codes = values / scale + zero
        assert float((codes - codes.round()).abs().max()) < 1e-3
        assert float(codes.min()) >= LOW - 1e-3
        assert float(codes.max()) <= HIGH + 1e-3


def test_kernels_have_no_groups() -> None:
    config = cnn.TINY.model_copy(update={"head_width": 32})
    model, frozen = trained(cnn, config, QuantScheme(weights=GROUPS, head=GROUPS, activations="float"))
    labels = {name: grid.label for name, grid in frozen.grids().items()}
    assert labels.pop("classifier.weight") == "int4 per group of 32"
    assert set(labels.values()) == {"int4 per channel"}
    images, _ = images_of(config, 3)
    with torch.no_grad():
        assert torch.equal(frozen.to_module()(images).logits, model(images).logits)


def integer_convolution(x: Tensor, layer: nn.Conv2d, weight: QuantizedTensor, ranges: Any, relu6: bool) -> Tensor:
    """A static int8 convolution spelled out: int64 sums, one float32 factor, one rounding, one clamp."""
    source, result = ranges
    codes = (x.double() / source.scale).round().long()
    bias = np.rint(layer.bias.detach().double().numpy() / (float(source.scale) * weight.scales.astype(float)))
    patches = nn.functional.unfold(codes.double(), layer.kernel_size, padding=layer.padding, stride=layer.stride).long()
    groups = patches.view(len(x), layer.groups, -1, patches.shape[-1])
    kernel = torch.from_numpy(weight.codes.astype(np.int64)).view(layer.groups, -1, groups.shape[2])
    acc = torch.einsum("goi,bgip->bgop", kernel, groups).reshape(len(x), len(weight.codes), -1).numpy()
    acc = acc + bias.astype(np.int64)[:, None]
    factors = (np.float32(source.scale) * weight.scales) / np.float32(result.scale)
    steps = np.rint(acc.astype(np.float32) * factors[:, None])
    low, high = LOW - result.zero_point, HIGH - result.zero_point
    if relu6:
        low, high = max(low, 0), min(high, round(6 / result.scale))
    return torch.from_numpy(steps.clip(low, high) * np.float32(result.scale))


@pytest.mark.parametrize("bits", [8, 4])
def test_every_convolution_of_a_frozen_student_is_the_integer_kernel_bit_for_bit(bits: Any) -> None:
    _, frozen = trained(cnn, cnn.TINY, scheme_of(WeightGrid(bits=bits), "static_int8"), 20)
    module, plain = frozen.to_module(), frozen.build()
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, _, _ in cnn.convolutions(cnn.TINY):
        module.get_submodule(f"{name}.conv").register_forward_hook(
            lambda _, inputs, out, name=name: seen.update({name: (inputs[0], out)})
        )
    with torch.no_grad():
        module(images_of(cnn.TINY)[0])
    assert len(seen) == len(cnn.convolutions(cnn.TINY))
    for name, (x, out) in seen.items():
        ranges = frozen.points[source_of(name)], frozen.points[f"{name}.point"]
        layer, weight = plain.get_submodule(f"{name}.conv"), frozen.quantized[f"{name}.conv.weight"]
        exact = integer_convolution(x, layer, weight, ranges, not plain.get_submodule(name).linear)
        assert torch.equal(exact.view(out.shape), out), name


def test_training_computes_the_frozen_arithmetic_but_for_rounding() -> None:
    """In training convolutions are float32, of exact products; nearly every value is the frozen one, none is 2 off."""
    model, frozen = trained(cnn, cnn.TINY, scheme_of(INT8, "static_int8"), 20)
    images, _ = images_of(cnn.TINY)
    found: list[dict[str, Tensor]] = []
    for network in (model.train(), frozen.to_module()):
        values: dict[str, Tensor] = {}
        for name in frozen.points:
            network.get_submodule(name).register_forward_hook(
                lambda _, __, out, name=name, values=values: values.update({name: out})
            )
        with torch.no_grad():
            network(images)
        found.append(values)
    moved = total = 0
    for name, grid in frozen.points.items():
        steps = ((found[0][name] - found[1][name]) / grid.scale).round().abs()
        assert float(steps.max()) <= 1, name
        moved, total = moved + int(steps.sum()), total + steps.numel()
    assert moved <= 1e-3 * total, f"{moved} of {total}"


def pairs_of_scales(count: int) -> list[tuple[float, float, float, float]]:
    random = np.random.default_rng(0)
    sizes = 10 ** random.uniform(-1, 1, (count, 2))
    shares = random.uniform(0, 1, (count, 2))
    return [(-a * s, a * (1 - s), -b * t, b * (1 - t)) for (a, b), (s, t) in zip(sizes, shares, strict=True)
            if 1 / 16 < a / b < 16]  # fmt: skip


def test_no_sum_of_two_codes_lies_between_two_codes() -> None:
    """Fixed-point factors and floats give the same code for each of the 65 536 pairs, whatever the ranges."""
    codes, disputed = torch.arange(LOW, HIGH + 1), 0
    for a_low, a_high, b_low, b_high in pairs_of_scales(60):
        a, b = summand_range_of(a_low, a_high), summand_range_of(b_low, b_high)
        low, high = 0.8 * (a_low + b_low), 0.8 * (a_high + b_high)
        for grid, plain in ((sum_range_of(low, high, (a, b)), False), (range_of(low, high), True)):
            assert float(torch.tensor(grid.scale).half()) == grid.scale
            x = ((codes - a.zero_point) * a.scale).float()[:, None].expand(256, 256)
            y = ((codes - b.zero_point) * b.scale).float()[None].expand(256, 256)
            floats = ((x + y) / grid.scale).round().clamp(LOW - grid.zero_point, HIGH - grid.zero_point)
            differ = int((static_sum(x, y, (a, b), grid) != floats * grid.scale).sum())
            assert plain or not differ, (a, b, grid)
            disputed += differ
    assert disputed > 100, "without that choice of scales some sums would differ"


def source_of(name: str) -> str:
    """The point in front of a convolution of the tiny config."""
    units = [name for name, _, _ in cnn.convolutions(cnn.TINY)]
    if name == "stem":
        return "input"
    before = units[units.index(name) - 1]
    sums = {"blocks.0.project": "blocks.0.sum", "blocks.2.project": "blocks.2.sum"}
    return sums.get(before, f"{before}.point")


def test_observed_ranges_of_relu6_start_at_zero_and_end_at_six_at_most() -> None:
    _, frozen = trained(cnn, cnn.TINY, scheme_of(INT8, "static_int8"))
    for name, _, _ in cnn.convolutions(cnn.TINY):
        scale, zero = frozen.points[f"{name}.point"]
        if not name.endswith("project"):
            assert zero == LOW
            assert scale * (HIGH - LOW) <= 6.01


def test_a_static_cnn_that_saw_no_batch_is_refused() -> None:
    model = prepare(part("cnn", "module").build(cnn.TINY), scheme_of(INT8, "static_int8"), cnn.tensors(cnn.TINY))
    with pytest.raises(StageError, match="no activation ranges"):
        freeze(model, "cnn", cnn.TINY, scheme_of(INT8, "static_int8"), {})
    assert any(isinstance(module, StaticQuantPoint) for module in model.modules())


def test_a_linear_layer_of_a_frozen_cnn_computes_on_integers() -> None:
    _, frozen = trained(cnn, cnn.TINY, scheme_of(INT8, "static_int8"))
    assert isinstance(frozen.to_module().classifier, FrozenLinear)
    assert isinstance(frozen.to_module("float").classifier, nn.Linear)


def test_a_description_with_a_point_that_the_network_has_not_is_refused() -> None:
    _, frozen = trained(cnn, cnn.TINY, scheme_of(INT8, "static_int8"))
    frozen.points["blocks.1.sum"] = Range(0.1, 0)
    with pytest.raises(SpecError, match=r"no point blocks\.1\.sum"):
        frozen.to_module()
