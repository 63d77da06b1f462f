"""Image classifier of inverted residual blocks (MobileNetV2, Sandler et al. 2018; EfficientNet-lite, Liu 2020).

A block widens its input with a 1x1 convolution, filters each channel by itself (depthwise) and narrows the result with
another 1x1 convolution; where shapes allow, its input is added. The only activation is ReLU6, there is no
squeeze-and-excitation, and batch norm is folded into the convolutions, so that every operator has an int8 kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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


class Stem(NamedTuple):
    """The first convolution; `side` is that of the image."""

    outputs: int
    side: int


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


class Final(NamedTuple):
    """The last convolution and the classifier."""

    inputs: int
    outputs: int
    side: int
    classes: int


Segment = Stem | Block | Final


class Convolution(NamedTuple):
    """One convolution: its module's name, the shape of its kernel and the side of the square that comes out."""

    name: str
    kernel: tuple[int, int, int, int]
    side: int


class Unit(NamedTuple):
    """One convolution of a segment: its name there, its kernel, the sides that come in and out, and what it brings
    into a file's graph beside itself: its kind, a pad, an addition."""

    name: str
    kernel: tuple[int, int, int, int]
    before: int
    side: int
    parts: tuple[str, ...]


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
    "image_size": (64, 96, 128, 160, 192, 224, 260, 300),
    "stem_width": (16, 24, 32),
    "stages": ([stage.model_dump() for stage in EFFICIENTNET_LITE0.stages],),
    "width_multiple": (0.25, 0.35, 0.5, 0.75, 1.0, 1.1, 1.2, 1.4),
    "depth_multiple": (0.25, 0.5, 0.75, 1.0, 1.2, 1.4, 1.8),
    "head_width": (320, 640, 960, 1280),
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
        out, kernel = stage.width, stage.kernel
        found.append(Block(width, width * stage.expansion, out, kernel, stage.stride, side))
        width, side = out, steps_of(side, stage.stride)
        found += [Block(out, out * stage.expansion, out, kernel, 1, side)] * (stage.repeats - 1)
    return found


def segments(config: Config) -> tuple[Segment, ...]:
    """Stem, blocks and end: each is stored, and costs, as it does in any other student."""
    plan = blocks(config)
    last = plan[-1]
    end = Final(last.outputs, config.head_width, steps_of(last.side, last.stride), config.classes)
    return (Stem(config.stem_width, config.image_size), *plan, end)


def segment_name(segment: Segment, number: int) -> str:
    """The name of its module; `number` is its place among `segments`."""
    return "stem" if isinstance(segment, Stem) else "final" if isinstance(segment, Final) else f"blocks.{number - 1}"


@lru_cache(maxsize=4096)
def units(segment: Segment) -> tuple[Unit, ...]:
    """The convolutions of a segment, in order."""
    if isinstance(segment, Stem):
        shape = segment.outputs, 3, STEM_KERNEL, STEM_KERNEL
        padded = _pad(segment.side, STEM_KERNEL, STEM_STRIDE)
        return (Unit("", shape, segment.side, steps_of(segment.side, STEM_STRIDE), ("cnn", *padded)),)
    if isinstance(segment, Final):
        return (Unit("", (segment.outputs, segment.inputs, 1, 1), segment.side, segment.side, ()),)
    inputs, hidden, outputs, kernel, stride, side = segment
    out = steps_of(side, stride)
    found = [Unit(".expand", (hidden, inputs, 1, 1), side, side, ("cnn.expand",))] if hidden != inputs else []
    padded = _pad(side, kernel, stride)
    added = ["cnn.sum"] * segment.residual
    return (
        *found,
        Unit(".depthwise", (hidden, 1, kernel, kernel), side, out, ("cnn.depthwise", *padded)),
        Unit(".project", (outputs, hidden, 1, 1), out, out, ("cnn.project", *added)),
    )


def _pad(side: int, kernel: int, stride: int) -> tuple[str, ...]:
    before, after = same_padding(side, kernel, stride)
    return ("cnn.pad",) if before != after else ()


def convolutions(config: Config) -> list[Convolution]:
    """Every convolution, in order."""
    return [
        Convolution(segment_name(segment, n) + unit.name, unit.kernel, unit.side)
        for n, segment in enumerate(segments(config))
        for unit in units(segment)
    ]


@remembered
def tensors(config: Config) -> list[StoredTensor]:
    """Every tensor of the folded student, named as in its state dict."""
    return [tensor for n, segment in enumerate(segments(config)) for tensor in segment_tensors(segment, n)]


def segment_tensors(segment: Segment, number: int) -> list[StoredTensor]:
    """The tensors of one segment; `number` is its place."""
    found: list[StoredTensor] = []
    for unit in units(segment):
        name = segment_name(segment, number) + unit.name
        found.append(StoredTensor(f"{name}.conv.weight", unit.kernel, "convolution", unit.parts))
        found.append(StoredTensor(f"{name}.conv.bias", unit.kernel[:1], "float", ("bias",)))
    if isinstance(segment, Final):
        found.append(StoredTensor("classifier.weight", (segment.classes, segment.outputs), "head"))
        found.append(StoredTensor("classifier.bias", (segment.classes,), "float", ("bias",)))
    return found


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
    return sum(segment_cost(segment).macs for segment in segments(config))


def cost(config: Config, length: int) -> Cost:
    """What one image costs. `length` is that of texts and changes nothing."""
    every = [segment_cost(segment) for segment in segments(config)]
    total = Cost(*(sum(column) for column in zip(*every, strict=True)))
    return total._replace(peak_elements=max(one.peak_elements for one in every))


@lru_cache(maxsize=4096)
def segment_cost(segment: Segment) -> Cost:
    """What one segment adds to the cost of an image; the peak is the segment's own."""
    read = written = filters = depthwise_macs = depthwise = peak = 0
    found = units(segment)
    for unit in found:
        outputs, inputs = unit.kernel[:2]
        work = prod(unit.kernel) * unit.side**2
        if unit.name == ".depthwise":
            inputs = outputs
            depthwise, depthwise_macs = depthwise + 1, depthwise_macs + work
        into, away = inputs * unit.before**2, outputs * unit.side**2
        read, written, filters, peak = read + into, written + away, filters + work, max(peak, into + away)
    weights = sum(prod(tensor.shape) for tensor in segment_tensors(segment, 0))
    ends = isinstance(segment, Final)
    width, classes = (segment.outputs, segment.classes) if isinstance(segment, Final) else (0, 0)
    return Cost(
        macs=filters + width * classes,
        depthwise_macs=depthwise_macs,
        read_elements=read + width,
        written_elements=written + classes,
        peak_elements=peak,
        layers=len(found) + ends,
        convolutions=len(found),
        depthwise_layers=depthwise,
        weights=weights,
        attention_elements=0,
    )
