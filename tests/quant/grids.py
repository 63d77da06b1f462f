"""Every weight grid, every scale, and weights of all sizes."""

from __future__ import annotations

import pytest
import torch

from edgedistill.quant.grid import SCALE_MIN
from edgedistill.specs.quant import PerGroup, WeightGrid

SIZES = [1e-9, 1e-6, 3e-4, 0.0078, 0.02, 1.0, 40.0, 6e4, 1e6]


def rows(size: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(64, 48, generator=generator) * size


BITS_8, BITS_4 = WeightGrid(), WeightGrid(bits=4)
GROUPS_8, GROUPS_4 = WeightGrid(granularity=PerGroup()), WeightGrid(bits=4, granularity=PerGroup())
GRIDS = {grid.label: grid for grid in (BITS_8, BITS_4, GROUPS_8, GROUPS_4)}
EACH_GRID = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
EACH_DTYPE = pytest.mark.parametrize("dtype", ["fp16", "bf16"])
LARGEST = 65504.0  # of fp16


def matrix(size: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(64, 96, generator=torch.Generator().manual_seed(seed)) * size


def every_scale(dtype: str) -> torch.Tensor:
    """Each of the 30720 normal fp16 numbers, or the 3840 bf16 numbers among them."""
    if dtype == "fp16":
        return torch.arange(0x0400, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    numbers = torch.arange(0x0080, 0x7F80, dtype=torch.int16).view(torch.bfloat16).float()
    return numbers[(numbers >= SCALE_MIN) & (numbers <= LARGEST)]


def fitting(grid: WeightGrid) -> list[float]:
    """Sizes whose scales are not beyond fp16."""
    return [size for size in SIZES if 5 * size / grid.code_max < LARGEST]
