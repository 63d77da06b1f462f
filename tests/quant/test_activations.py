"""The grids of activations, and products of integers."""

from __future__ import annotations

import pytest
import torch
from grids import rows

from edgedistill.quant.activations import HIGH, LOW, integer_matmul, quantize_rows, range_of
from edgedistill.quant.grid import SCALE_MIN


def test_rows_are_quantized_within_half_a_step_and_zero_is_exact() -> None:
    x = torch.cat([rows(1.0), rows(1e-5), rows(300.0).abs(), -rows(2.0).abs(), torch.zeros(1, 48)])
    x[:, 7] = 0
    shifted, step = quantize_rows(x)
    span = x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)
    assert torch.allclose(step[:-1, 0], span[:-1] / 255, rtol=1e-6)
    # The zero point is rounded, so the far end of the range may lie half a step outside the codes.
    assert bool(((shifted * step - x).abs() <= step * (1 + 1e-4)).all())
    assert bool((shifted[:, 7] == 0).all())
    assert bool((shifted.amax(1) - shifted.amin(1) <= HIGH - LOW).all())


def test_integer_products_are_exact_at_any_width() -> None:
    generator = torch.Generator().manual_seed(3)
    for width in (16, 518, 519, 3000):
        a = torch.randint(-255, 256, (5, width), generator=generator)
        b = torch.randint(-127, 128, (7, width), generator=generator)
        a[0], b[0] = 255, 127  # the largest sum there is
        exact = (a.double() @ b.double().t()).float()
        assert torch.equal(integer_matmul(a.float(), b.float()), exact)


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0), (-1e-9, 1e-9), (-9e4, 1e5)]
)
def test_a_static_range_holds_zero_and_its_ends(low: float, high: float) -> None:
    grid = range_of(low, high)
    assert LOW <= grid.zero_point <= HIGH
    assert float(torch.tensor(grid.scale).half()) == grid.scale >= SCALE_MIN
    slack = grid.scale * (1 + 256 / 2**11)  # half a step for the zero point, and 255 steps of the rounded scale
    assert (LOW - grid.zero_point) * grid.scale <= min(low, 0) + slack
    assert (HIGH - grid.zero_point) * grid.scale >= max(high, 0) - slack
