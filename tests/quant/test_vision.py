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
from edgedistill.quant.activations import HIGH, LOW, Range
from edgedistill.quant.fake import StaticQuantPoint, WeightQuantConv2d
from edgedistill.quant.modules import FrozenLinear, FrozenPoint
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
    assert bool(frozen.points) == (static and family is cnn)
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
    assert all(isinstance(module, WeightQuantConv2d) for module in layers.values())
    bits = {name: grid.bits for name, grid in frozen.grids().items()}
    assert {bits[f"{name}.weight"] for name in layers if not name.startswith("stem")} == {4}
    assert bits["stem.conv.weight"] == 8
    assert all(frozen.quantized[f"{name}.weight"].scales.ndim == 1 for name in layers)
    module = frozen.to_module()
    seen: dict[str, Tensor] = {}
    for name, place in module.named_modules():
        if isinstance(place, FrozenPoint):
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


def integer_convolution(
    x: Tensor, source: Range, layer: nn.Conv2d, scales: Tensor, result: Range, relu6: bool
) -> Tensor:
    """A static int8 convolution as kernels compute it: int32 sums and bias, one float multiplication, one rounding."""
    shifted = (x / source.scale).round().double()
    codes = (layer.weight / scales.view(-1, 1, 1, 1)).round().double()
    assert layer.bias is not None
    bias = (layer.bias.double() / (source.scale * scales)).round()
    acc = nn.functional.conv2d(shifted, codes, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    out = (acc.float() * ((source.scale * scales) / result.scale).view(-1, 1, 1)).round()
    low, high = LOW - result.zero_point, HIGH - result.zero_point
    if relu6:
        low, high = max(low, 0), min(high, round(6 / result.scale))
    return out.clamp(low, high) * result.scale


def test_a_float_convolution_between_points_is_the_integer_kernel_but_for_rare_single_steps() -> None:
    """Convolutions stay float in a frozen student; this is what that costs: each one, given equal int8 inputs."""
    _, frozen = trained(cnn, cnn.TINY, scheme_of(INT8, "static_int8"), 20)
    module = frozen.to_module()
    grids: dict[str, tuple[Tensor, Tensor]] = {}
    for name, _, _ in cnn.convolutions(cnn.TINY):
        module.get_submodule(name).register_forward_hook(
            lambda _, inputs, out, name=name: grids.update({name: (inputs[0], out)})
        )
    module.requires_grad_(False)
    module(images_of(cnn.TINY)[0])
    moved = total = 0
    for name, (x, out) in grids.items():
        unit = module.get_submodule(name)
        if unit.pad is not None:
            x = nn.functional.pad(x, unit.pad)
        result = frozen.points[f"{name}.point"]
        scales = torch.from_numpy(frozen.quantized[f"{name}.conv.weight"].scales.copy())
        source = frozen.points[source_of(name)]
        exact = integer_convolution(x, source, unit.conv, scales, result, not unit.linear)
        steps = ((exact - out) / result.scale).round().abs()
        assert float(steps.max()) <= 1, name
        moved, total = moved + int(steps.sum()), total + steps.numel()
    assert moved <= 0.003 * total, f"{moved} of {total}"


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
