"""A frozen student as the network that coremltools reads: codes announced beside each weight, grids as named steps.

coremltools rebuilds integer codes from a float weight and the scales in buffers `_COREML_/weight/...` of its layer; the
weight is `code * scale`, exact in float32, so the codes come out as they went in. A grid of activations is an operator
of our own, which carries the name of its place into the file, so that each grid can be found there by name.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.exporters.coreml.exact import ExactLayer, steps_of
from edgedistill.quant.activations import HIGH, LOW, Range, bias_codes
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students import Port

_PREFIX = "_COREML_/weight/"
_QUANTIZATION = 3  # of coremltools' compression types: 1 pruning, 2 palettization, 3 quantization
Arithmetic = Literal["float16", "float32"]
"""What a package computes in."""
OPERATOR = "edgedistill::coreml_on_grid"
# the input of a decoder beside its ids
POSITION = Port("position", (1,), "int32")


def _on_grid(x: Tensor, scale: float, zero_point: int, place: str) -> Tensor:
    """The values of `x` moved to the grid, as Core ML does: a division, no product. `place` is only a name."""
    return (x / scale).round_().clamp_(LOW - zero_point, HIGH - zero_point) * scale


_SCHEMA = "coreml_on_grid(Tensor x, float scale, int zero_point, str place) -> Tensor"
# the operator lives as long as this object
_LIBRARY = torch.library.Library("edgedistill", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(_SCHEMA)  # type: ignore[no-untyped-call]
_LIBRARY.impl("coreml_on_grid", _on_grid, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


class Generator(nn.Module):
    """A decoder that keeps its keys and values in states, one pair a layer: a prompt is read once, then token by token.

    Takes ids [1, N] and `position` [1], the number of tokens that the states hold already; answers logits [1, N, ...].
    """

    def __init__(self, model: nn.Module, slots: int) -> None:
        super().__init__()
        self.model = model
        self.names: list[tuple[str, str]] = []
        for number, pair in enumerate(model.empty_caches(1, slots)):  # type: ignore[operator]
            self.names.append((f"key_{number}", f"value_{number}"))
            for name, cache in zip(self.names[-1], pair, strict=True):
                self.register_buffer(name, cache)

    def forward(self, input_ids: Tensor, position: Tensor) -> Tensor:
        """The logits; the states then hold the new tokens too."""
        caches = [(self.get_buffer(key), self.get_buffer(value)) for key, value in self.names]
        answer, changed = self.model.step(input_ids, position, caches)  # type: ignore[operator]
        for names, pair in zip(self.names, changed, strict=True):
            for name, cache in zip(names, pair, strict=True):
                self.get_buffer(name)[:] = cache
        out: Tensor = answer.logits
        return out


def generates(model: nn.Module) -> bool:
    """Whether a network is a decoder that can be run token by token (`students.llama`)."""
    return hasattr(model, "step") and hasattr(model, "empty_caches")


def network(frozen: FrozenStudent, *, grids: bool = True, exact: bool = False) -> nn.Module:
    """The student's float network with the grids of its activations; what a file of it must compute.

    It runs in any float dtype; with `grids` false, activations are left alone. `dynamic_int8` activations stay float:
    Core ML has no ranges that follow the input. With `exact`, static activations are computed in the student's own
    float32 steps (`exact`).

    Raises:
        StageError: if these steps do not hold the sums of a layer.
    """
    model = frozen.build()
    for owner, (source, result) in frozen.layer_grids(model).items():
        layer: Any = model.get_submodule(owner)
        scales = frozen.quantized[f"{owner}.weight"].scales
        if exact:
            layer = ExactLayer(layer, torch.from_numpy(scales.copy()), (source, result), owner)
            model.set_submodule(owner, layer)
        elif isinstance(layer.bias, Tensor):
            _quantize_bias(layer.bias, source, scales)
        if grids and owner in frozen.ranges:  # a convolution's are those of its points
            layer.register_forward_pre_hook(_before(source, f"{owner}.in", exact))
            layer.register_forward_hook(_after(result, f"{owner}.out", exact))
    for name, grid in frozen.points.items() if grids else ():
        model.get_submodule(name).register_forward_hook(_after(grid, name, exact))
    return model


@torch.no_grad()
def _quantize_bias(bias: Tensor, source: Range, scales: NDArray[np.float32]) -> None:
    """Move the bias of a static layer to the grid of its sums, where the student was trained to add it."""
    steps = torch.from_numpy(scales.copy())
    bias.copy_(bias_codes(bias, source.scale, steps) * (source.scale * steps))


def identifier(name: str) -> str:
    """A name as programs may hold it: letters, digits and underscores."""
    return re.sub(r"\W", "_", name)


def places(frozen: FrozenStudent) -> dict[str, Range]:
    """The grid of each place that has one, by the name its operator carries."""
    found: dict[str, Range] = {}
    for owner, (source, result) in frozen.ranges.items():
        found |= {f"{owner}.in": source, f"{owner}.out": result}
    return found | frozen.points


def announce(model: nn.Module, frozen: FrozenStudent) -> None:
    """Add to each layer with a quantized weight the buffers that tell coremltools its scales and bits."""
    grids = frozen.grids()
    for name, tensor in frozen.quantized.items():
        scales = torch.from_numpy(tensor.scales.copy())
        if scales.dim() == 1:
            scales = scales.view(-1, *[1] * (tensor.codes.ndim - 1))
        weight = model.get_parameter(name)
        for layer in model.modules():  # a tied weight is announced by each layer that uses it
            if getattr(layer, "weight", None) is weight:
                layer.register_buffer(_PREFIX + "compression_type", torch.tensor([_QUANTIZATION]))
                layer.register_buffer(_PREFIX + "quantization_n_bits", torch.tensor(grids[name].bits))
                layer.register_buffer(_PREFIX + "quantization_scale", scales)
    model.register_buffer("_COREML_/metadata_version", torch.tensor(1))


def _before(grid: Range, place: str, exact: bool) -> Any:
    def move(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_apply(inputs[0], grid, place, exact),)

    return move


def _after(grid: Range, place: str, exact: bool) -> Any:
    def move(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _apply(output, grid, place, exact)

    return move


def _apply(x: Tensor, grid: Range, place: str, exact: bool) -> Tensor:
    moved = steps_of(x, grid.scale) if exact else x
    out: Tensor = torch.ops.edgedistill.coreml_on_grid(moved, grid.scale, grid.zero_point, place)
    return out
