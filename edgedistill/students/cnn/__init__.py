"""Image classifier of inverted residual blocks (MobileNetV2, Sandler et al. 2018; EfficientNet-lite, Liu 2020).

A block widens its input with a 1x1 convolution, filters each channel by itself (depthwise) and narrows the result with
another 1x1 convolution; where shapes allow, its input is added. The only activation is ReLU6, there is no
squeeze-and-excitation, and batch norm is folded into the convolutions, so that every operator has an int8 kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from edgedistill.specs import Spec
from edgedistill.students import Cost, Signature, StoredTensor, remembered
from edgedistill.students._images import image_signature, random_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("tflite", "onnx", "coreml")
# LiteRT would quantize the input of a convolution anew for each image at run time, which is slower than float
ACTIVATIONS = ("static_int8", "float")
STEM_KERNEL, STEM_STRIDE = 3, 2
Width = Annotated[int, Field(ge=1, le=4096)]


class Stage(Spec):
    """`repeats` blocks at one resolution; only the first of them has `stride`."""

    expansion: Annotated[int, Field(ge=1, le=10)] = Field(
        description="hidden channels by input channels; 1: no 1x1 convolution before the depthwise one"
    )
    kernel: Literal[3, 5, 7]
    stride: Literal[1, 2]
    width: Width
    repeats: Annotated[int, Field(ge=1, le=32)]


class Config(Spec):
    """Sizes of the student. `classes` is filled in from the data when a candidate leaves it out."""

    image_size: Annotated[int, Field(ge=8, le=1024, description="side of the square input, in pixels")]
    stem_width: Width
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=16)]
    head_width: Width
    classes: Annotated[int, Field(ge=2)] = 2


class Block(NamedTuple):
    """One inverted residual block, spelled out; `side` is that of the square that comes in."""

    inputs: int
    hidden: int
    outputs: int
    kernel: int
    stride: int
    side: int

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.inputs == self.outputs


class Convolution(NamedTuple):
    """One convolution: its module's name, the shape of its kernel and the side of the square that comes out."""

    name: str
    kernel: tuple[int, int, int, int]
    side: int


def _stages(*rows: tuple[int, int, int, int, int]) -> tuple[Stage, ...]:
    """Stages from rows of expansion, kernel, stride, width, repeats, as papers print them."""
    return tuple(Stage.model_validate(dict(zip(Stage.model_fields, row, strict=True))) for row in rows)


TINY = Config(image_size=24, stem_width=8, stages=_stages((1, 3, 1, 8, 1), (2, 5, 2, 12, 2)), head_width=24, classes=3)
EFFICIENTNET_LITE0 = Config(
    image_size=224,
    stem_width=32,
    stages=_stages(
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    ),
    head_width=1280,
    classes=1000,
)

# What `plan --search` looks through: every combination, of EfficientNet-lite's stages made wider and deeper or less so.
SPACE = {
    "image_size": (64, 96, 128, 160, 192, 224),
    "stem_width": (16, 24, 32),
    "stages": ([stage.model_dump() for stage in EFFICIENTNET_LITE0.stages],),
    "head_width": (320, 640, 1280),
    "width_multiple": (0.25, 0.35, 0.5, 0.75, 1.0, 1.25),
    "depth_multiple": (0.35, 0.5, 0.75, 1.0, 1.2),
}


def steps_of(side: int, stride: int) -> int:
    """The side that a convolution with TensorFlow's "SAME" padding gives: side / stride, rounded up."""
    return -(-side // stride)


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a side, as TensorFlow's "SAME" adds them: an odd one comes after.

    With stride 2 on an even side they differ, and a network trained that way shifts by a pixel under symmetric padding.
    """
    total = max((steps_of(side, stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def blocks(config: Config) -> list[Block]:
    """Every block, in order."""
    found: list[Block] = []
    width, side = config.stem_width, steps_of(config.image_size, STEM_STRIDE)
    for stage in config.stages:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            found.append(Block(width, width * stage.expansion, stage.width, stage.kernel, stride, side))
            width, side = stage.width, steps_of(side, stride)
    return found


def convolutions(config: Config) -> list[Convolution]:
    """Every convolution, in order."""
    side = steps_of(config.image_size, STEM_STRIDE)
    found = [Convolution("stem", (config.stem_width, 3, STEM_KERNEL, STEM_KERNEL), side)]
    width = config.stem_width
    for n, block in enumerate(blocks(config)):
        out = steps_of(block.side, block.stride)
        if block.hidden != block.inputs:
            found.append(Convolution(f"blocks.{n}.expand", (block.hidden, block.inputs, 1, 1), block.side))
        found.append(Convolution(f"blocks.{n}.depthwise", (block.hidden, 1, block.kernel, block.kernel), out))
        found.append(Convolution(f"blocks.{n}.project", (block.outputs, block.hidden, 1, 1), out))
        width, side = block.outputs, out
    return [*found, Convolution("final", (config.head_width, width, 1, 1), side)]


@remembered
def tensors(config: Config) -> list[StoredTensor]:
    """Every tensor of the folded student, named as in its state dict."""
    found: list[StoredTensor] = []
    plan = blocks(config)
    for name, kernel, _ in convolutions(config):
        found.append(StoredTensor(f"{name}.conv.weight", kernel, "convolution", _parts(config, plan, name)))
        found.append(StoredTensor(f"{name}.conv.bias", kernel[:1], "float", ("bias",)))
    head = StoredTensor("classifier.weight", (config.classes, config.head_width), "head")
    return [*found, head, StoredTensor("classifier.bias", (config.classes,), "float", ("bias",))]


def _parts(config: Config, plan: Sequence[Block], name: str) -> tuple[str, ...]:
    """What a convolution brings into a file's graph beside itself: its kind, a pad, an addition."""
    if name == "stem":
        side, stride, kernel, found = config.image_size, STEM_STRIDE, STEM_KERNEL, ["cnn"]
    elif name == "final":
        return ()
    else:
        _, number, kind = name.split(".")
        block = plan[int(number)]
        if kind != "depthwise":
            return (f"cnn.{kind}", *["cnn.sum"] * (kind == "project" and block.residual))
        side, stride, kernel, found = block.side, block.stride, block.kernel, ["cnn.depthwise"]
    before, after = same_padding(side, kernel, stride)
    return (*found, *["cnn.pad"] * (before != after))


def signatures(config: Config, buckets: Sequence[int]) -> tuple[Signature, ...]:
    """The one entry point `image`: float32 `pixels` [1, side, side, 3] to `logits`. Images have no length buckets."""
    return (image_signature(config.image_size, config.classes),)


def sample(config: Config, signature: Signature, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """A random image."""
    return {"pixels": random_image(config.image_size, random)}


def parameters(config: Config) -> int:
    """Number of values of the folded student."""
    return sum(prod(tensor.shape) for tensor in tensors(config))


def macs(config: Config, length: int) -> int:
    """Multiply-accumulates of one image: convolutions and head. `length` is that of texts and changes nothing."""
    filters = sum(prod(kernel) * side**2 for _, kernel, side in convolutions(config))
    return filters + config.head_width * config.classes


def cost(config: Config, length: int) -> Cost:
    """What one image costs. `length` is that of texts and changes nothing."""
    read = written = depthwise_macs = depthwise = 0
    peak, side = 0, config.image_size
    found = convolutions(config)
    for name, kernel, out in found:
        outputs, inputs = kernel[0], kernel[1]
        if name.endswith("depthwise"):
            inputs = outputs
            depthwise, depthwise_macs = depthwise + 1, depthwise_macs + prod(kernel) * out**2
        into, away = inputs * side**2, outputs * out**2
        read, written, peak, side = read + into, written + away, max(peak, into + away), out
    return Cost(
        macs=macs(config, length),
        depthwise_macs=depthwise_macs,
        read_elements=read + config.head_width,
        written_elements=written + config.classes,
        peak_elements=peak,
        layers=len(found) + 1,
        convolutions=len(found),
        depthwise_layers=depthwise,
        weights=parameters(config),
        attention_elements=0,
    )
