"""The network of the `cnn` family, in plain torch, and its twin with batch norm, which is trained and then folded.

Folding comes before fake quantization: what is quantized then is what the file holds (Jacob et al. 2018, section 3.2).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from edgedistill.data.tensors import Outputs
from edgedistill.students._points import Convolution, Point, Sum
from edgedistill.students.cnn import STEM_KERNEL, STEM_STRIDE, Block, Config, blocks, convolutions, same_padding

EPSILON = 1e-3  # TensorFlow's default for batch norm, which the published weights were trained with


class Unit(nn.Module):
    """A convolution with "SAME" padding, batch norm in the twin for training, ReLU6 unless `linear`, and a grid.

    `name` is the unit's in the network, `source` that of the point that its input comes from.
    """

    def __init__(
        self,
        name: str,
        source: str,
        inputs: int,
        outputs: int,
        side: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        linear: bool = False,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        before, after = same_padding(side, kernel, stride)
        even = before == after
        self.linear = linear
        # a convolution pads both sides alike; the rest is an operator of its own, which every converter sees
        self.pad = None if even else (before, after, before, after)
        wires: dict[str, Any] = {"source": source, "result": f"{name}.point", "relu6": not linear}
        sides: dict[str, Any] = {"stride": stride, "padding": before if even else 0}
        self.conv = Convolution(inputs, outputs, kernel, **sides, **wires, groups=groups, bias=not batch_norm)
        self.norm = nn.BatchNorm2d(outputs, eps=EPSILON) if batch_norm else None
        self.point = Point()

    def forward(self, x: Float[Tensor, "batch inputs side side"]) -> Float[Tensor, "batch outputs out out"]:
        """`out` is side / stride, rounded up."""
        if self.pad is not None:
            x = nn.functional.pad(x, self.pad)
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        # before the point: a runtime then fuses the activation into the convolution's int8 output
        out: Tensor = self.point(x if self.linear else nn.functional.relu6(x))
        return out


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; the input is added where the shapes are equal.

    `name` is the block's in the network, `source` that of the point that its input comes from; `result` names its own.
    """

    def __init__(self, name: str, source: str, block: Block, batch_norm: bool = False) -> None:
        super().__init__()
        inputs, hidden, outputs, kernel, stride, side = block
        units = [f"{name}.{unit}" for unit in ("expand", "depthwise", "project")]
        wide, filtered, narrow = (f"{unit}.point" for unit in units)
        widens, norm = hidden != inputs, {"batch_norm": batch_norm}
        self.expand = Unit(units[0], source, inputs, hidden, side, **norm) if widens else None
        before = wide if widens else source
        self.depthwise = Unit(units[1], before, hidden, hidden, side, kernel, stride, groups=hidden, **norm)
        self.project = Unit(units[2], filtered, hidden, outputs, 1, linear=True, **norm)
        self.sum = Sum((source, narrow)) if block.residual else None
        self.result = narrow if self.sum is None else f"{name}.sum"

    def forward(self, x: Float[Tensor, "batch inputs side side"]) -> Float[Tensor, "batch outputs out out"]:
        """One block."""
        wide = x if self.expand is None else self.expand(x)
        out: Tensor = self.project(self.depthwise(wide))
        if self.sum is None:
            return out
        out = self.sum(x, out)
        return out


class CnnClassifier(nn.Module):
    """Normalised pixels, channels last, to `Outputs`. Dropout-free, as every student."""

    def __init__(self, config: Config, batch_norm: bool = False) -> None:
        super().__init__()
        self.config = config
        plan = blocks(config)
        self.input = Point()
        stem = config.stem_width, config.image_size, STEM_KERNEL, STEM_STRIDE
        self.stem = Unit("stem", "input", 3, *stem, batch_norm=batch_norm)
        self.blocks, place = nn.ModuleList(), "stem.point"
        for n, about in enumerate(plan):
            block = InvertedResidual(f"blocks.{n}", place, about, batch_norm)
            self.blocks.append(block)
            place = block.result
        self.final = Unit("final", place, plan[-1].outputs, config.head_width, 1, batch_norm=batch_norm)
        self.classifier = nn.Linear(config.head_width, config.classes)

    def forward(self, pixels: Float[Tensor, "batch side side 3"]) -> Outputs:
        """`pixels` as after normalisation; the permutation is one that converters cancel."""
        x = self.stem(self.input(pixels).permute(0, 3, 1, 2))
        for block in self.blocks:
            x = block(x)
        # over the middle axes, as files have channels last: over the last two, a TFLite file transposes first. No point
        # after it: the classifier's input range is its grid, and of two grids in a row a converter may drop one
        pooled = self.final(x).permute(0, 2, 3, 1).mean((1, 2))
        return Outputs(self.classifier(pooled), pooled)


def build(config: Config, batch_norm: bool = False) -> CnnClassifier:
    """A student with random weights; `batch_norm` gives the twin to train, which `fold` turns into the student.

    Convolutions are normal with deviation sqrt(gain / inputs of one sum), gain 2 after a ReLU6 (He et al. 2015) and 1
    after a sum or the image, so that the folded network, too, starts with values near 1; biases are 0.
    """
    model = CnnClassifier(config, batch_norm)
    for name, kernel, _ in convolutions(config):
        conv = model.get_submodule(f"{name}.conv")
        after_relu = name.endswith(("depthwise", "project"))
        nn.init.normal_(conv.get_parameter("weight"), std=math.sqrt((2 if after_relu else 1) / math.prod(kernel[1:])))
        if not batch_norm:
            nn.init.zeros_(conv.get_parameter("bias"))
    nn.init.normal_(model.classifier.weight, std=1 / math.sqrt(config.head_width))
    nn.init.zeros_(model.classifier.bias)
    return model


@torch.no_grad()
def fold(model: CnnClassifier) -> CnnClassifier:
    """The student that answers what its trained twin answers in eval mode; its weights are copies.

    Raises:
        ValueError: if `model` has no batch norm.
    """
    state: dict[str, Tensor] = {}
    for name, _, _ in convolutions(model.config):
        unit = model.get_submodule(name)
        if not isinstance(unit, Unit) or unit.norm is None:
            raise ValueError(f"{name} has no batch norm: the model is folded already")
        norm, weight = unit.norm, unit.conv.weight
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # in float64, so that the one rounding of each value is the last
        moments = norm.running_mean.double(), norm.running_var.double()
        gain, shift = norm.weight.double(), norm.bias.double()
        kernel, bias = fuse_conv_bn_weights(weight.double(), None, *moments, norm.eps, gain, shift)
        # contiguous: published weights keep TensorFlow's strides, which litert-torch 0.10 misreads without a word
        state |= {
            f"{name}.conv.weight": kernel.to(weight.dtype).contiguous(),
            f"{name}.conv.bias": bias.to(weight.dtype),
        }
    for part, value in model.classifier.state_dict().items():
        state[f"classifier.{part}"] = value.clone(memory_format=torch.contiguous_format)
    with torch.device("meta"):  # draws nothing from the random generator
        folded = CnnClassifier(model.config)
    folded.load_state_dict(state, assign=True)
    return folded.train(model.training)
