"""The cnn family against other implementations of the same papers, its folding and its padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from cnn_networks import TINY, as_published, lived_in, pixels, twin
from learning import losses_of, shaded
from torch import Tensor, nn
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from edgedistill.errors import SpecError
from edgedistill.students import cnn
from edgedistill.students._points import Point
from edgedistill.students.cnn.module import build, fold


def plainly(state: Mapping[str, Tensor], strides: list[int], images: Tensor) -> Tensor:
    """EfficientNet-lite from the published names with no module of ours: convolution, batch norm, ReLU6, pool, linear.

    Padding is done the long way: every tap that would fall outside reads a zero.
    """

    def unit(x: Tensor, conv: str, norm: str, stride: int = 1, linear: bool = False) -> Tensor:
        kernel = state[f"{conv}.weight"]
        size, side = kernel.shape[-1], x.shape[-1]
        out = (side + stride - 1) // stride
        total = max((out - 1) * stride + size - side, 0)
        wide = torch.zeros(*x.shape[:2], side + total, side + total)
        wide[:, :, total // 2 : total // 2 + side, total // 2 : total // 2 + side] = x
        groups = x.shape[1] // kernel.shape[1]
        y = nn.functional.conv2d(wide, kernel, None, stride, 0, 1, groups)
        moments = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        y = nn.functional.batch_norm(y, *moments, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3)
        return y if linear else y.clamp(0, 6)

    x = unit(images.permute(0, 3, 1, 2), "_conv_stem", "_bn0", 2)
    for n, stride in enumerate(strides):
        name, y = f"_blocks.{n}.", x
        if f"{name}_expand_conv.weight" in state:
            y = unit(y, f"{name}_expand_conv", f"{name}_bn0")
        y = unit(y, f"{name}_depthwise_conv", f"{name}_bn1", stride)
        y = unit(y, f"{name}_project_conv", f"{name}_bn2", linear=True)
        x = x + y if x.shape == y.shape else y
    x = unit(x, "_conv_head", "_bn1").mean((2, 3))
    return x @ state["_fc.weight"].t() + state["_fc.bias"]


def strides_of(config: cnn.Config) -> list[int]:
    return [stage.stride if n == 0 else 1 for stage in config.stages for n in range(stage.repeats)]


@pytest.mark.parametrize("size", [23, 24])
def test_the_network_is_the_paper_read_plainly(size: int) -> None:
    config = TINY.model_copy(update={"image_size": size})
    model = twin(config)
    images = pixels(config)
    with torch.no_grad():
        ours, theirs = model(images).logits, plainly(as_published(model.state_dict()), strides_of(config), images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert float(theirs.std()) > 0.1


def test_the_network_is_the_mobilenet_of_transformers() -> None:
    torch.manual_seed(0)
    about = MobileNetV2Config(image_size=40, depth_multiplier=0.25, depth_divisible_by=4, min_depth=4, num_labels=5)
    theirs = lived_in(MobileNetV2ForImageClassification(about))
    rows = (1, 3, 1, 4, 1), (6, 3, 2, 8, 2), (6, 3, 2, 8, 3), (6, 3, 2, 16, 4), (6, 3, 1, 24, 3), (6, 3, 2, 40, 3)
    keys = ("expansion", "kernel", "stride", "width", "repeats")
    stages = [dict(zip(keys, row, strict=True)) for row in (*rows, (6, 3, 1, 80, 1))]
    values = {"image_size": 40, "stem_width": 8, "stages": stages, "head_width": 1280, "classes": 5}
    ours = build(cnn.Config.decode(values, "here"), batch_norm=True)
    # both define their layers in the order in which they run
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = pixels(ours.config)
    with torch.no_grad():
        expected = theirs(images.permute(0, 3, 1, 2)).logits
        found = fold(ours.eval())(images).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float(expected.std()) > 1e-3


def test_folding_keeps_the_answers_and_leaves_convolutions_with_biases() -> None:
    model = twin()
    random = torch.get_rng_state()
    folded = fold(model)
    assert torch.equal(random, torch.get_rng_state())
    with torch.no_grad():
        ours, theirs = folded(pixels()), model(pixels())
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=0, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert {name: tuple(p.shape) for name, p in folded.named_parameters()} == {
        tensor.name: tensor.shape for tensor in cnn.tensors(TINY)
    }
    assert all(p.requires_grad for p in folded.parameters())
    assert not folded.training
    assert fold(model.train()).training


def test_a_folded_network_shares_nothing_with_its_twin_and_is_not_folded_again() -> None:
    model = twin()
    folded = fold(model)
    before = {name: value.clone() for name, value in folded.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert all(torch.equal(before[name], value) for name, value in folded.state_dict().items())
    with pytest.raises(ValueError, match="stem has no batch norm"):
        fold(folded)


def test_the_twin_trains_and_its_folded_form_follows_the_statistics() -> None:
    torch.manual_seed(0)
    model = build(TINY, batch_norm=True).train()
    images = shaded(pixels(count=1))
    losses = losses_of(model, images, steps=30)
    assert losses[-1] < 0.3 * losses[0]
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(fold(model)(images).logits, model(images).logits, rtol=0, atol=1e-5)


def test_a_random_network_passes_a_signal_of_ordinary_size_through_every_convolution() -> None:
    torch.manual_seed(0)
    rows = [
        {"expansion": 6, "kernel": 3, "stride": s, "width": w, "repeats": 3} for s, w in ((2, 16), (2, 24), (1, 32))
    ]
    model = build(cnn.Config(image_size=32, stem_width=16, stages=rows, head_width=64, classes=4))
    sizes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, out, name=name: sizes.update({name: float(out.detach().std())}))
    with torch.no_grad():
        logits = model(pixels(model.config, 8)).logits
    assert all(0.2 < size < 6 for size in sizes.values()), sizes
    assert float(logits.std()) > 0.05


@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(s, k, t) for s in (1, 2, 7, 12) for k in (1, 3, 5) for t in (1, 2)]
)
def test_padding_is_tensorflows(side: int, kernel: int, stride: int) -> None:
    before, after = cnn.same_padding(side, kernel, stride)
    # https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    total = max(kernel - stride, 0) if side % stride == 0 else max(kernel - side % stride, 0)
    assert (before, after) == (total // 2, total - total // 2)
    assert (before + side + after - kernel) // stride + 1 == cnn.steps_of(side, stride)


def test_points_stand_where_a_static_scheme_has_int8_values() -> None:
    model = build(TINY)
    places = [name for name, module in model.named_modules() if isinstance(module, Point)]
    # the second block of the second stage has equal shapes, and so has the first block of all
    assert [name for name in places if name.endswith("sum")] == ["blocks.0.sum", "blocks.2.sum"]
    convolutions = [f"{name}.point" for name, _, _ in cnn.convolutions(TINY)]
    assert sorted(places) == sorted([*convolutions, "blocks.0.sum", "blocks.2.sum", "input"])
    seen: dict[str, Tensor] = {}
    for name in places:
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        model(3 * pixels())
    for name in convolutions:
        inside = bool((seen[name] >= 0).all() and (seen[name] <= 6).all())
        assert inside != name.endswith("project.point"), "ReLU6 comes before the grid, and not after a projection"


def test_an_image_does_not_see_its_neighbours_in_the_batch() -> None:
    torch.manual_seed(0)
    model, images = build(TINY).eval(), pixels()
    with torch.no_grad():
        together = model(images).logits
        for row in range(len(images)):
            torch.testing.assert_close(model(images[row : row + 1]).logits[0], together[row], rtol=0, atol=1e-6)


def test_samples_look_like_normalised_photographs() -> None:
    images = pixels(count=20)
    assert images.shape == (20, 24, 24, 3)
    assert 0.6 < float(images.std()) < 1.4
    assert float((images[:, 1:] - images[:, :-1]).std()) < 0.7 * float(images.std())


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("image_size", 4, "greater than or equal to 8"),
        ("image_size", 4096, "less than or equal to 1024"),
        ("stages", [], "at least 1 item"),
        ("stages", [{"expansion": 6, "kernel": 4, "stride": 1, "width": 8, "repeats": 1}], "3, 5 or 7"),
        ("stages", [{"expansion": 6, "kernel": 3, "stride": 3, "width": 8, "repeats": 1}], "1 or 2"),
        (
            "stages",
            [{"expansion": 0, "kernel": 3, "stride": 1, "width": 8, "repeats": 1}],
            "greater than or equal to 1",
        ),
        ("squeeze", 4, "unknown key 'squeeze'"),
        ("classes", 1, "greater than or equal to 2"),
    ],
)
def test_sizes_that_cannot_be_are_refused(key: str, value: Any, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        cnn.Config.decode(TINY.model_dump() | {key: value}, "here")
