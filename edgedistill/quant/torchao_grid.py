"""The weight grids of torchao's quantization-aware training, computed by torchao's own functions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torchao.quantization.granularity import PerAxis
from torchao.quantization.granularity import PerGroup as PerGroupOfTorchao
from torchao.quantization.qat import IntxFakeQuantizeConfig
from torchao.quantization.quant_primitives import (
    _DTYPE_TO_BIT_WIDTH,
    _DTYPE_TO_QVALUE_BOUNDS,
    MappingType,
    ZeroPointDomain,
    quantize_affine,
)
from torchao.quantization.utils import get_group_qparams_symmetric

from edgedistill.errors import SpecError, StageError
from edgedistill.specs.quant import PerChannel, PerGroup, WeightGrid


class OnTheirGrid(NamedTuple):
    """A weight as torchao has it: `codes` in the range of `grid`'s bits (-128 included), `scales` float32."""

    codes: Int8[Tensor, "channels width"]
    scales: Float[Tensor, "channels groups"]
    grid: WeightGrid


def quantize_as_torchao(
    name: str, weight: Float[Tensor, "channels width"], config: Any, scales: Tensor | None = None
) -> OnTheirGrid:
    """Codes and scales that torchao's fake quantizer of `config` gives; `scales`: those it has learned or fixed.

    Raises:
        SpecError: `config` is not a symmetric int8 or int4 grid per channel or group of 32.
        StageError: the weight or a scale is not a finite number, or a scale is not positive.
    """
    grid = grid_of(name, config)
    group = weight.shape[1] if isinstance(grid.granularity, PerChannel) else grid.granularity.size
    if weight.shape[1] % group:
        raise SpecError(f"{name}: a width of {weight.shape[1]} has no groups of {group}.")
    if not bool(weight.isfinite().all()):
        raise StageError(f"{name} holds values that are not finite: training diverged; lower the rate.")
    scales = None if scales is None else scales.detach()
    if scales is None:
        bits, precision = _DTYPE_TO_BIT_WIDTH[config.dtype], config.scale_precision
        scales, _ = get_group_qparams_symmetric(weight, bits, group, precision, eps=config.eps)
    if not bool((scales > 0).all()) or not bool((1 / scales).isfinite().all()):
        raise StageError(f"{name} has a scale of {float(scales.min()):.3g}, which torchao cannot divide by.")
    low, high = _DTYPE_TO_QVALUE_BOUNDS[config.dtype]
    zero = torch.zeros(scales.shape, dtype=torch.int32)
    codes = quantize_affine(weight, (1, group), scales, zero, torch.int8, low, high)
    return OnTheirGrid(codes, scales.float().reshape(len(weight), -1), grid)


def grid_of(name: str, config: Any) -> WeightGrid:
    """Our name for the grid of torchao's fake quantizer.

    Raises:
        SpecError: it is not a symmetric int8 or int4 grid per channel or group of 32.
    """
    if isinstance(config, IntxFakeQuantizeConfig):
        bits = _DTYPE_TO_BIT_WIDTH.get(config.dtype)
        symmetric = config.mapping_type == MappingType.SYMMETRIC and config.zero_point_domain == ZeroPointDomain.INT
        if symmetric and bits in (4, 8):
            match config.granularity:
                case PerAxis(axis=0):
                    return WeightGrid(bits=bits)
                case PerGroupOfTorchao(group_size=32):
                    return WeightGrid(bits=bits, granularity=PerGroup())
    raise SpecError(
        f"{name} was trained with {config}. Only symmetric int8 and int4 per channel or per group of 32 can be stored."
    )


def unpacked(name: str, weight: Any) -> OnTheirGrid:
    """The numbers of a weight that torchao has converted, an `IntxUnpackedToInt8Tensor`.

    Raises:
        SpecError: it has other bits, other groups or zero points.
    """
    _, group = weight.block_size
    width = weight.qdata.shape[1]
    bits = _DTYPE_TO_BIT_WIDTH.get(weight.target_dtype)
    if bits not in (4, 8) or group not in (32, width) or bool(weight.zero_point.any()):
        raise SpecError(
            f"{name} was converted to {weight.target_dtype} in blocks of {group} of {width} columns. Only int8 and "
            "int4 without zero points, per channel or per group of 32, can be stored."
        )
    grid = WeightGrid(bits=bits, granularity=PerChannel() if group == width else PerGroup())
    return OnTheirGrid(weight.qdata, weight.scale.float(), grid)
