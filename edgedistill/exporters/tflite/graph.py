"""Frozen student to a raw .tflite, through litert-torch: weights pass as quantize/dequantize pairs on the exact grid.

The pair (quantize, then dequantize) around a float weight is the one form that litert-torch 0.10 turns into an int8
constant with our codes and scales; a dequantize of an int8 buffer is refused, and torchao's ops leave custom calls.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.errors import MissingDependency, StageError
from edgedistill.exporters._quiet import silenced
from edgedistill.exporters.tflite.carriers import Carrier
from edgedistill.exporters.tflite.decoding import entry
from edgedistill.exporters.tflite.opening import add_opened, opens
from edgedistill.quant.activations import HIGH, LOW, Range
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.grid import CODE_MAX, dequantize
from edgedistill.students import Signature
from edgedistill.students._transformer import Root


def convert(frozen: FrozenStudent, signatures: Sequence[Signature], given: Mapping[str, Carrier]) -> bytearray:
    """A .tflite with the signatures, before it is shrunk and checked: with `given` in place of the student's codes, or
    with its tensors as further inputs (`opening`), for which `given` is empty.

    Raises:
        MissingDependency: if litert-torch is not installed.
        StageError: if the converter refuses the model.
    """
    # Read when litert_torch is imported; it draws progress bars on the terminal otherwise.
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    try:
        with silenced():
            import litert_torch
            from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
            from litert_torch.quantize.quant_config import QuantConfig
    except ImportError as error:
        raise MissingDependency(f"Export to TFLite needs litert-torch ({error}): pip install litert-torch") from None
    # The mode must match the pairs below: in static mode a weight whose input has no pair silently comes out float,
    # in dynamic mode static pairs break the batch matmuls. Weights of float activations pass in dynamic mode too, for
    # without a mode they come out float, with the layer norm before them multiplied in.
    dynamic = frozen.scheme.activations != "static_int8"
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(config))
    try:
        with silenced(), torch.no_grad():
            if opens(frozen):
                return bytearray(add_opened(litert_torch, frozen, signatures).convert().model_content())
            converter = add_signatures(litert_torch, _with_pairs(frozen, given), signatures)
            return bytearray(converter.convert(quant_config=quantizer).model_content())
    except Exception as error:  # the converter raises errors of torch, jax, MLIR and plain builtins alike
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StageError(
            f"litert-torch cannot convert the {frozen.family} student ({type(error).__name__}): {first}. "
            "Use another student family or report the model with this message."
        ) from error


def add_signatures(litert_torch: Any, model: nn.Module, signatures: Sequence[Signature]) -> Any:
    """litert-torch's converter, holding the signatures of `model` (which answers `Outputs`).

    `litert_torch` is the imported module: the caller chooses where its slow, talkative import happens.
    """
    converter = litert_torch
    for signature in signatures:
        # Tensors of their own: one object given under two names is traced as a single input, and one is lost silently.
        sample = {port.name: torch.ones(port.shape, dtype=getattr(torch, port.dtype)) for port in signature.inputs}
        converter = converter.signature(signature.name, entry(model, signature).eval(), sample_kwargs=sample)
    return converter


class _Pairs(nn.Module):
    """A layer whose weight, and in a static scheme its input and output, pass through a quantize/dequantize pair."""

    scales: Tensor
    zeros: Tensor

    def __init__(self, layer: nn.Module, scales: Tensor, ranges: tuple[Range, Range] | None = None) -> None:
        super().__init__()
        self.layer, self.ranges = layer, ranges
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64))

    def forward(self, input: Tensor) -> Tensor:
        ops, layer = torch.ops.quantized_decomposed, self.layer
        grid = self.scales, self.zeros, 0, -CODE_MAX, CODE_MAX, torch.int8
        weight = ops.dequantize_per_channel(ops.quantize_per_channel(layer.weight, *grid), *grid)
        if isinstance(layer, nn.Embedding):
            return nn.functional.embedding(input, weight)
        if isinstance(layer, nn.Conv2d):
            out: Tensor = layer._conv_forward(input, weight, layer.bias)
            return out
        assert isinstance(layer, nn.Linear)
        if self.ranges is None:
            return nn.functional.linear(input, weight, layer.bias)
        source, result = self.ranges
        return _pair(nn.functional.linear(_pair(input, source), weight, layer.bias), result)


class _OnGrid(nn.Module):
    """A point of a static network with its grid."""

    def __init__(self, point: nn.Module, grid: Range) -> None:
        super().__init__()
        self.point, self.grid = point, grid

    def forward(self, *inputs: Tensor) -> Tensor:
        return _pair(self.point(*inputs), self.grid)


class _Root(nn.Module):
    """A square root rounded once, of a runtime's own that may be some units in the last place off: XNNPACK's is on x86.

    With `h` the first 12 bits of that one, `h * h` and `r = x - h * h` are exact, and so is `h + t - t^2 / 2h` with
    `t = r / 2h` to 2^-37 of it, as `t` is below 2^-12 of `h`.
    """

    def forward(self, x: Tensor) -> Tensor:
        near = x.sqrt()
        wide = near * 4097.0  # Veltkamp's splitting (Dekker 1971): 2^12 + 1
        high = wide - (wide - near)
        twice = high + high
        t = (x - high * high) / twice
        return high + (t - t * t / twice)


def _pair(x: Tensor, grid: Range) -> Tensor:
    ops = torch.ops.quantized_decomposed
    arguments = grid.scale, grid.zero_point, LOW, HIGH, torch.int8
    out: Tensor = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *arguments), *arguments)
    return out


def _with_pairs(frozen: FrozenStudent, given: Mapping[str, Carrier]) -> nn.Module:
    import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed

    model = frozen.build()
    for name, carrier in given.items():
        weight, scales = model.get_parameter(name), torch.from_numpy(carrier.scales.copy())
        weight.copy_(dequantize(torch.from_numpy(carrier.codes), scales))
        for owner, layer in list(model.named_modules()):
            if getattr(layer, "weight", None) is weight:  # each layer that a tied weight belongs to
                assert isinstance(layer, nn.Linear | nn.Embedding | nn.Conv2d), owner
                model.set_submodule(owner, _Pairs(layer, scales, frozen.ranges.get(owner)))
    for name, grid in frozen.points.items():
        model.set_submodule(name, _OnGrid(model.get_submodule(name), grid))
    for name in [name for name, module in model.named_modules() if isinstance(module, Root)]:
        model.set_submodule(name, _Root())
    return model
