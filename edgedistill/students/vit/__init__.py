"""Vision Transformer (Dosovitskiy et al. 2021) for image classification: pre-layer-norm, GELU, mean pooling.

The mean of all patches, not a class token: as good when trained from scratch (Beyer et al. 2022, "Better plain ViT
baselines for ImageNet-1k"), and the sequence stays a square of patches, without a row that only one operator makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from edgedistill.specs import Spec
from edgedistill.students import Cost, Signature, StoredTensor, remembered
from edgedistill.students._images import image_signature, random_image
from edgedistill.students._tensors import linear_tensors, norm_tensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("tflite", "onnx", "coreml")
ACTIVATIONS = ("dynamic_int8", "static_int8", "float")
Count = Annotated[int, Field(ge=1)]

# What `plan --search` looks through: every combination.
SPACE = {
    "image_size": (96, 128, 160, 192, 224),
    "patch": (8, 16, 32),
    "layers": (1, 2, 3, 4, 5, 6, 8, 10, 12),
    "width": (48, 64, 96, 128, 160, 192, 256, 320, 384, 512),
    "head_width": (32, 16, 64),
    "ffn_ratio": (1, 2, 3, 4),
}


class Config(Spec):
    """Sizes of the student. `classes` is filled in from the data when a candidate leaves it out."""

    image_size: Annotated[int, Field(ge=8, le=1024, description="side of the square input, in pixels")]
    patch: Annotated[int, Field(ge=2, le=64, description="side of a square patch, in pixels")]
    layers: Annotated[int, Field(ge=1, le=48)]
    width: Annotated[int, Field(ge=8, le=4096)]
    heads: Count
    ffn: Annotated[int, Field(ge=1, le=16384)]
    classes: Annotated[int, Field(ge=2)] = 2

    @model_validator(mode="after")
    def _divides(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} is not a multiple of heads = {self.heads}")
        if self.image_size % self.patch:
            raise ValueError(f"image_size = {self.image_size} is not a multiple of patch = {self.patch}")
        if self.patches > 4096:
            raise ValueError(f"{self.patches} patches are more than 4096: attention grows with their square")
        return self

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch) ** 2


TINY = Config(image_size=16, patch=4, layers=1, width=16, heads=2, ffn=32, classes=3)


@remembered
def tensors(config: Config) -> list[StoredTensor]:
    """Every tensor of the student, named as in its state dict."""
    w, f = config.width, config.ffn
    found = [
        StoredTensor("embeddings.patch.weight", (w, 3 * config.patch**2), "linear", ("vit",)),
        StoredTensor("embeddings.position", (config.patches, w), "float"),
    ]
    for n in range(config.layers):
        found += norm_tensors(f"layers.{n}.attention_norm", w, "vit.layer")
        for name in ("query", "key", "value", "output"):
            found += linear_tensors(f"layers.{n}.{name}", w, w)
        found += norm_tensors(f"layers.{n}.ffn_norm", w)
        found += linear_tensors(f"layers.{n}.up", f, w) + linear_tensors(f"layers.{n}.down", w, f)
    found += norm_tensors("norm", w)
    head = StoredTensor("classifier.weight", (config.classes, w), "head")
    return [*found, head, StoredTensor("classifier.bias", (config.classes,), "float", ("bias",))]


def signatures(config: Config, buckets: Sequence[int]) -> tuple[Signature, ...]:
    """The one entry point `image`: float32 `pixels` [1, side, side, 3] to `logits`. Images have no length buckets."""
    return (image_signature(config.image_size, config.classes),)


def sample(config: Config, signature: Signature, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """A random image."""
    return {"pixels": random_image(config.image_size, random)}


def parameters(config: Config) -> int:
    """Number of trained values."""
    return sum(prod(tensor.shape) for tensor in tensors(config))


def macs(config: Config, length: int) -> int:
    """Multiply-accumulates of one image: linear layers, attention scores and values, head.

    `length` is that of texts and changes nothing.
    """
    w, patches = config.width, config.patches
    linear = 4 * w**2 + 2 * w * config.ffn
    attention = 2 * patches * w
    patch = 3 * config.patch**2 * w
    return patches * (patch + config.layers * (linear + attention)) + w * config.classes


def cost(config: Config, length: int) -> Cost:
    """What one image costs. `length` is that of texts and changes nothing."""
    w, f, n, deep, pixels = config.width, config.ffn, config.patches, config.layers, 3 * config.image_size**2
    moved = deep * n * (7 * w + f) + n * w  # what is read is as much as what is written, but for the ends
    return Cost(
        macs=macs(config, length),
        depthwise_macs=0,
        read_elements=moved + pixels + w,
        written_elements=moved + n * w + config.classes,
        peak_elements=max(n * (w + f), 2 * n * w, pixels + n * w),
        layers=3 + 8 * deep,
        convolutions=0,
        depthwise_layers=0,
        weights=parameters(config),
        attention_elements=config.heads * n * n,
    )
