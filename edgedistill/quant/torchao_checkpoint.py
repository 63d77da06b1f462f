"""A student that was trained with torchao's QAT, lowered to the same codes and scales as one of our own.

Checked against torchao 0.18 (`tests/quant/test_torchao_checkpoint.py` repeats the check). Its `IntxFakeQuantizeConfig`
with a symmetric int8 or int4 weight, one scale per channel (`PerAxis(0)`) or per group of 32 (`PerGroup(32)`):

- scale: `absmax / ((code_max - code_min) / 2)`, so absmax / 127.5 or / 7.5 where ours is / 127 or / 7. That is no
  conflict: a scale is stored, not derived. It is taken from torchao's own function.
- type of a scale: float32 unless `scale_precision` says otherwise. With `torch.float16` (or `bfloat16`, which the
  scheme's `bf16` needs) scales are held exactly. A float32 scale moves to the nearest, by 2^-11 (2^-8) of itself at
  most, and its codes stay.
- code: `round(weight * (1 / scale))`, in the type of the operands, where ours divides: near a tie, another code. Codes
  are therefore taken from torchao's own function too, and not computed from the weights again.
- range of codes: -8..7 for int4, as ours. -128..127 for int8, where ours ends at -127: since absmax is 127.5 steps, a
  channel whose largest weight is negative holds a -128, and that weight moves by one step.
- least scale: 1.2e-38, ours 2^-14. Codes of smaller scales are rounded to the larger steps.
- gradient: torchao's is 1 inside and 0 where a code was clipped. Of no consequence here.
- activations: int8 per token, asymmetric, with another choice of the zero point than XNNPACK's. Nothing of them is
  stored; a runtime computes them its own way, as `FrozenStudent.to_module` does.

So int4 with scales of the scheme's type is held exactly, and the report says for every tensor what moved and how far.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchao.quantization import IntxUnpackedToInt8Tensor
from torchao.quantization.qat import IntxFakeQuantizeConfig

from edgedistill.errors import SpecError, StageError
from edgedistill.quant.frozen import FrozenStudent, stored_of
from edgedistill.quant.grid import ScaleDtype, codes_of, round_scales, scales_of, spread
from edgedistill.quant.stored import QuantizedTensor
from edgedistill.quant.torchao_grid import OnTheirGrid, quantize_as_torchao, unpacked
from edgedistill.specs.base import Spec
from edgedistill.specs.quant import PerChannel, QuantScheme, WeightGrid
from edgedistill.students import StoredTensor, TensorKind

LEARNED = ".weight_fake_quantizer.scale"


class Moved(NamedTuple):
    """What became of one tensor. A step is the scale that torchao used for the weight."""

    name: str
    trained: bool
    codes_moved: int
    scale_change: float
    weight_change_steps: float

    @property
    def exact(self) -> bool:
        """Whether codes and scales are torchao's own."""
        return self.trained and self.codes_moved == 0 and self.scale_change == 0

    def __str__(self) -> str:
        if not self.trained:
            return (
                f"{self.name}: was float in training; quantized now, off by up to {self.weight_change_steps:.3g} steps"
            )
        if self.exact:
            return f"{self.name}: held exactly"
        return (
            f"{self.name}: {self.codes_moved} codes moved, scales by up to {self.scale_change:.2g} of themselves, "
            f"weights by up to {self.weight_change_steps:.3g} steps"
        )


class Converted(NamedTuple):
    """The frozen student, and for each quantized tensor what moved."""

    student: FrozenStudent
    report: tuple[Moved, ...]


def from_module(model: nn.Module, family: str, config: Spec, scheme: QuantScheme, task: Mapping[str, Any]) -> Converted:
    """Lower a module after QAT with torchao, before or after its `convert` step. Layers that torchao left float are
    quantized by their absmax, and the report says so.

    Raises:
        SpecError: a tensor is missing, was trained on another grid than the scheme's, or on none that we have.
        StageError: a weight or scale is not finite, or needs a scale beyond fp16.
    """
    state = {name: value.detach() for name, value in model.state_dict().items()}
    layers = dict(model.named_modules())
    theirs: dict[str, OnTheirGrid] = {}
    for tensor in stored_of(family, config):
        layer = layers.get(tensor.name.removesuffix(".weight"))
        weight = getattr(layer, "weight", None)
        fake = getattr(layer, "weight_fake_quantizer", None)
        if isinstance(weight, IntxUnpackedToInt8Tensor):
            theirs[tensor.name] = unpacked(tensor.name, weight)
        elif fake is not None:
            # scales that follow the weight are those of the last forward, before the last update
            scales = None if getattr(fake.config, "is_dynamic", True) else fake.scale
            theirs[tensor.name] = quantize_as_torchao(tensor.name, state[tensor.name], fake.config, scales)
    return _lower(state, theirs, family, config, scheme, task)


def from_safetensors(
    path: Path,
    family: str,
    config: Spec,
    scheme: QuantScheme,
    task: Mapping[str, Any],
    trained: Mapping[TensorKind, IntxFakeQuantizeConfig],
) -> Converted:
    """Lower the state dict of a module that torchao prepared for QAT, saved before its `convert` step.

    The file holds float weights and does not say on which grid they were trained: `trained` does, for each kind of
    tensor. A kind that it leaves out was float in training.

    Raises:
        SpecError: as `from_module`; or the file cannot be read, or its names are not those of such a state dict.
        StageError: as `from_module`.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SpecError(f"{path}: not a safetensors file: {error}.") from None
    stored = stored_of(family, config)
    learned = {
        tensor.name: tensor.name.removesuffix(".weight") + LEARNED
        for tensor in stored
        if tensor.kind in trained and trained[tensor.kind].range_learning
    }
    wanted = {tensor.name for tensor in stored} | set(learned.values())
    if state.keys() != wanted:
        odd = ", ".join(sorted(state.keys() ^ wanted)[:3])
        raise SpecError(f"{path}: its tensors are not those of the config and the grids: missing or unknown: {odd}.")
    theirs = {}
    for tensor in stored:
        about = trained.get(tensor.kind)
        if about is None:
            continue
        if not about.is_dynamic and not about.range_learning:
            raise SpecError(f"{path}: torchao saves no scales with is_dynamic = False; convert the live module.")
        scales = state[learned[tensor.name]] if tensor.name in learned else None
        theirs[tensor.name] = quantize_as_torchao(tensor.name, state[tensor.name], about, scales)
    return _lower(state, theirs, family, config, scheme, task)


def _lower(
    state: Mapping[str, Tensor],
    theirs: Mapping[str, OnTheirGrid],
    family: str,
    config: Spec,
    scheme: QuantScheme,
    task: Mapping[str, Any],
) -> Converted:
    if scheme.activations == "static_int8":
        raise SpecError("a torchao checkpoint has no ranges of activations, which static_int8 needs: use dynamic_int8.")
    quantized, floats, report = {}, {}, []
    for tensor in stored_of(family, config):
        if tensor.name not in state or tuple(state[tensor.name].shape) != tensor.shape:
            seen = list(state[tensor.name].shape) if tensor.name in state else "missing"
            raise SpecError(f"{tensor.name} is {seen} in the checkpoint, must be {list(tensor.shape)}.")
        grid = tensor.grid(scheme)
        if grid is None:
            floats[tensor.name] = _finite(tensor.name, state[tensor.name]).numpy().copy()
            continue
        if tensor.name in theirs:
            quantized[tensor.name], moved = _move(tensor, theirs[tensor.name], grid, scheme.scale_dtype)
        else:
            weight = _finite(tensor.name, state[tensor.name])
            quantized[tensor.name], moved = _after_training(tensor.name, weight, grid, scheme.scale_dtype)
        report.append(moved)
    values = config.model_dump(mode="json")
    student = FrozenStudent(family, values, scheme, quantized, floats, {}, {}, dict(task))
    return Converted(student, tuple(report))


def _move(
    tensor: StoredTensor, theirs: OnTheirGrid, grid: WeightGrid, dtype: ScaleDtype
) -> tuple[QuantizedTensor, Moved]:
    """Torchao's numbers on our grid: the nearest scale that can be stored, codes kept where that can be."""
    same_blocks = theirs.grid.granularity == grid.granularity or tensor.shape[1] == 32  # a channel is one group then
    if theirs.grid.bits != grid.bits or not same_blocks:
        raise SpecError(
            f"{tensor.name} was trained in {theirs.grid.label}, and the scheme says {grid.label}: change the scheme."
        )
    scales = _storable(tensor.name, round_scales(theirs.scales, dtype))
    shape = torch.Size(tensor.shape)
    ratio = spread(theirs.scales.double() / scales.double(), shape)
    # a scale rounded to nearest moves no code, as 127 * 2^-8 is less than half a step; one raised to the least does
    codes = (theirs.codes.double() * ratio).round().clamp(grid.code_min, grid.code_max).to(torch.int8)
    change = (codes.double() / ratio - theirs.codes.double()).abs()
    stored = scales.flatten() if isinstance(grid.granularity, PerChannel) else scales
    moved = Moved(
        tensor.name,
        trained=True,
        codes_moved=int((codes != theirs.codes).sum()),
        scale_change=float((scales.double() / theirs.scales.double() - 1).abs().max()),
        weight_change_steps=float(change.max()),
    )
    return QuantizedTensor(codes.numpy(), stored.numpy().copy()), moved


def _after_training(name: str, weight: Tensor, grid: WeightGrid, dtype: ScaleDtype) -> tuple[QuantizedTensor, Moved]:
    try:
        scales = _storable(name, scales_of(weight, grid, dtype))
    except ValueError as error:
        raise SpecError(f"{name} does not fit its grid: {error}.") from None
    codes = codes_of(weight, scales, grid)
    steps = (weight / spread(scales, weight.shape) - codes).abs().max()
    moved = Moved(name, trained=False, codes_moved=0, scale_change=0.0, weight_change_steps=float(steps))
    return QuantizedTensor(codes.numpy(), scales.numpy()), moved


def _storable(name: str, scales: Tensor) -> Tensor:
    if not bool(scales.isfinite().all()):
        raise StageError(f"{name} needs a scale beyond fp16.")
    return scales


def _finite(name: str, value: Tensor) -> Tensor:
    if not bool(value.isfinite().all()):
        raise StageError(f"{name} holds values that are not finite: training diverged; lower the rate.")
    return value.float()
