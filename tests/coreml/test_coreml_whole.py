"""Whole models of random weights: a CNN, a text encoder of flexible length, a vision transformer, a classifier."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_models import convert, coremltools, quiet
from torch import nn

from edgedistill.coreml import Evaluator, Program, load

RNG = np.random.default_rng(6)


class Squeeze(nn.Module):
    """Channels weighed by what all places say of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.up(nn.functional.silu(self.down(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """An inverted bottleneck, with a shortcut where sizes agree."""

    def __init__(self, into: int, out: int, kernel: int, stride: int, grow: int, squeeze: bool) -> None:
        super().__init__()
        wide = into * grow
        layers: list[nn.Module] = []
        if grow > 1:
            layers += [nn.Conv2d(into, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        layers += [nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False), nn.BatchNorm2d(wide)]
        layers += [nn.ReLU6(), *([Squeeze(wide)] if squeeze else []), nn.Conv2d(wide, out, 1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(out))
        self.short = stride == 1 and into == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.short else self.layers(x)


def image_network(
    stages: Sequence[tuple[int, int, int, int, int]], first: int, last: int, classes: int, squeeze: bool
) -> nn.Module:
    """`stages` are (growth, channels, blocks, stride, kernel), as EfficientNet's paper lists them."""
    layers: list[nn.Module] = [nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU6()]
    width = first
    for grow, out, blocks, stride, kernel in stages:
        for index in range(blocks):
            layers.append(Block(width, out, kernel, stride if index == 0 else 1, grow, squeeze))
            width = out
    layers += [nn.Conv2d(width, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6(), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(last, classes))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


class Encoder(nn.Module):
    """transformers' BERT with its mask made outside, as the exporter does."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        with quiet():
            from transformers import BertConfig, BertForSequenceClassification

            self.model = BertForSequenceClassification(BertConfig(num_labels=7, **sizes)).eval()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        dtype = self.model.classifier.weight.dtype
        extended = ((1 - mask.to(dtype)) * -1e4)[:, None, None, :].expand(-1, -1, ids.shape[1], -1)
        places = torch.arange(ids.shape[1])[None]
        types = torch.zeros_like(ids)
        found = self.model(input_ids=ids, attention_mask=extended, token_type_ids=types, position_ids=places)
        return found.logits


class Vision(nn.Module):
    """A vision transformer of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 17, 32))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(5))
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for i in range(2):
            q, k, v = self.qkv[i](self.norms[2 * i](x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
            attended = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + self.out[i](attended.transpose(1, 2).flatten(2))
            x = x + self.mlp[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x)[:, 0])


def ask(module: nn.Module, feeds: dict[str, np.ndarray], dtype: torch.dtype) -> np.ndarray:
    values = [torch.from_numpy(feed.copy()) for feed in feeds.values()]
    with torch.no_grad():
        model = copy.deepcopy(module).to(dtype)
        return model(*(v.to(dtype) if v.is_floating_point() else v for v in values)).numpy()


def agrees(program: Program, module: nn.Module, feeds: dict[str, np.ndarray], tolerances: dict[Any, float]) -> None:
    for precision, tolerance in tolerances.items():
        wanted = ask(module, feeds, torch.float64 if precision == "fp64" else torch.float32)
        got = Evaluator(program, precision).predict(feeds)["y"]
        error = np.abs(got - wanted).max() / max(1.0, np.abs(wanted).max())
        assert error <= tolerance, precision


TEXT = {
    "ids": RNG.integers(1, 90, (1, 12)).astype(np.int32),
    "mask": (np.arange(12) < 9).astype(np.int32)[None],
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 90}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(2)
    return Encoder(**SMALL)


@pytest.mark.parametrize(
    ("target", "precision", "tolerances"),
    [
        ("iOS17", "fp32", {"fp32": 2e-6, "fp64": 1e-7}),
        ("iOS18", "fp32", {"fp32": 2e-6, "fp64": 1e-7}),
        ("iOS18", "fp16", {"fp32": 2e-3, "fp16": 5e-3, "fp64": 2e-3}),
    ],
)
def test_a_text_encoder(
    encoder: Encoder, target: str, precision: str, tolerances: dict[str, float], tmp_path: Path
) -> None:
    path = convert(encoder, TEXT, tmp_path / "t.mlpackage", target=target, precision=precision, outputs=["y"])
    agrees(load(path), encoder, TEXT, tolerances)


@pytest.mark.parametrize("kind", ["range", "list"])
def test_a_text_encoder_of_flexible_length(encoder: Encoder, kind: str, tmp_path: Path) -> None:
    ct = coremltools()
    lengths = (8, 12, 40)
    if kind == "range":
        length = ct.RangeDim(4, 64, default=12)
        shapes = dict.fromkeys(TEXT, (1, length))
    else:
        shapes = {name: ct.EnumeratedShapes([(1, n) for n in lengths], default=(1, 12)) for name in TEXT}
    path = convert(encoder, TEXT, tmp_path / "f.mlpackage", target="iOS18", outputs=["y"], shapes=shapes)
    program = load(path)
    for length in lengths:
        feeds = {
            "ids": RNG.integers(1, 90, (1, length)).astype(np.int32),
            "mask": (np.arange(length) < length - 2).astype(np.int32)[None],
        }
        agrees(program, encoder, feeds, {"fp32": 2e-6, "fp64": 1e-7})


@pytest.mark.parametrize(
    ("target", "precision", "tolerances"),
    [
        ("iOS17", "fp32", {"fp32": 5e-6, "fp64": 3e-7}),
        ("iOS17", "fp16", {"fp32": 5e-3, "fp16": 1e-2, "fp64": 5e-3}),
    ],
)
def test_an_image_network(target: str, precision: str, tolerances: dict[str, float], tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = image_network([(1, 8, 1, 1, 3), (4, 12, 2, 2, 3), (4, 16, 2, 2, 5)], 8, 48, 10, squeeze=True)
    feeds = {"x": RNG.uniform(-1, 1, (1, 3, 33, 33)).astype(np.float32)}
    path = convert(model, feeds, tmp_path / "c.mlpackage", target=target, precision=precision, outputs=["y"])
    agrees(load(path), model, feeds, tolerances)


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_a_vision_transformer(target: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = Vision().eval()
    feeds = {"x": RNG.uniform(-1, 1, (1, 3, 16, 16)).astype(np.float32)}
    path = convert(model, feeds, tmp_path / "v.mlpackage", target=target, outputs=["y"])
    agrees(load(path), model, feeds, {"fp32": 3e-6, "fp64": 1e-7})


def test_a_classifier_names_its_label(tmp_path: Path) -> None:
    ct = coremltools()
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)).eval()
    x = np.array([[1.0, -2.0, 0.5, 3.0]], np.float32)
    with quiet():
        traced = torch.jit.trace(model, torch.from_numpy(x))
        made = ct.convert(
            traced,
            inputs=[ct.TensorType(name="x", shape=x.shape, dtype=np.float32)],
            classifier_config=ct.ClassifierConfig(["cat", "dog", "owl"], predicted_feature_name="label"),
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
        made.save(str(tmp_path / "k.mlpackage"))
    answer = Evaluator(load(tmp_path / "k.mlpackage"), "fp32").predict({"x": x})
    wanted = ask(model, {"x": x}, torch.float32)[0]
    assert answer["label"].tolist() == [["cat", "dog", "owl"][int(wanted.argmax())]]
    assert np.abs(answer["label_probs"] - wanted).max() < 1e-6


def test_an_image_is_fed_as_numbers_from_0_to_255(tmp_path: Path) -> None:
    """Scale and shift of an image input are operations of the program."""
    ct = coremltools()
    torch.manual_seed(8)
    model = nn.Conv2d(3, 4, 3).eval()
    image = RNG.uniform(0, 255, (1, 3, 8, 8)).astype(np.float32)
    with quiet():
        made = ct.convert(
            torch.jit.trace(model, torch.zeros(1, 3, 8, 8)),
            inputs=[ct.ImageType(name="x", shape=image.shape, scale=1 / 127.5, bias=[-1, -1, -1])],
            outputs=[ct.TensorType(name="y", dtype=np.float32)],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
        made.save(str(tmp_path / "i.mlpackage"))
    got = Evaluator(load(tmp_path / "i.mlpackage"), "fp32").predict({"x": image})["y"]
    assert np.abs(got - ask(model, {"x": image / 127.5 - 1}, torch.float32)).max() < 1e-6


def test_functions_that_share_weights(tmp_path: Path) -> None:
    """A package of two functions: the caller chooses."""
    ct = coremltools()
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU()).eval()
    feeds = {length: {"x": RNG.uniform(-1, 1, (length, 16)).astype(np.float32)} for length in (2, 5)}
    with quiet():
        description = ct.utils.MultiFunctionDescriptor()
        for length, fed in feeds.items():
            path = convert(model, fed, tmp_path / f"{length}.mlpackage", target="iOS18", outputs=["y"])
            description.add_function(str(path), src_function_name="main", target_function_name=f"length_{length}")
        description.default_function_name = "length_2"
        ct.utils.save_multifunction(description, str(tmp_path / "both.mlpackage"))
    program = load(tmp_path / "both.mlpackage")
    assert set(program.functions) == {"length_2", "length_5"}
    for length, fed in feeds.items():
        got = Evaluator(program, "fp32", function=f"length_{length}").predict(fed)["y"]
        assert np.abs(got - ask(model, fed, torch.float32)).max() < 1e-6
    assert program.main.name == "length_2"


LITE0 = [
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
]
HEADS = {"num_hidden_layers": 6, "num_attention_heads": 12}
MINILM = {"hidden_size": 384, "intermediate_size": 1536, "vocab_size": 30522, **HEADS}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "minilm_l6"])
def test_real_sizes(name: str, tmp_path: Path) -> None:
    """How long they take: `bench/coreml_evaluator.py`."""
    torch.manual_seed(7)
    if name == "minilm_l6":
        model: nn.Module = Encoder(**MINILM)
        feeds = {"ids": RNG.integers(1, 30000, (1, 32)).astype(np.int32), "mask": np.ones((1, 32), np.int32)}
    else:
        model = image_network(LITE0, 32, 1280, 1000, squeeze=False)
        feeds = {"x": RNG.uniform(-1, 1, (1, 3, 224, 224)).astype(np.float32)}
    program = load(convert(model, feeds, tmp_path / "m.mlpackage", outputs=["y"]))
    agrees(program, model, feeds, {"fp32": 5e-6, "fp64": 3e-7})
