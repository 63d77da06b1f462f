"""The weight grid against its definition: closed forms, not recorded outputs."""

from __future__ import annotations

import pytest
import torch

from edgedistill.quant.activations import HIGH, LOW, integer_matmul, quantize_rows, range_of
from edgedistill.quant.grid import SCALE_MIN, scales_of, codes_of, dequantize, fake_quantize

SIZES = [1e-9, 1e-6, 3e-4, 0.0078, 0.02, 1.0, 40.0, 6e4, 1e6]


def rows(size: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(64, 48, generator=generator) * size


def test_scale_is_absmax_over_127() -> None:
    assert scales_of(torch.tensor([[127.0, -1.0], [0.5, -254.0]])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("size", SIZES)
def test_scales_are_normal_fp16_numbers(size: float) -> None:
    scales = scales_of(rows(size))
    assert torch.equal(scales.half().float(), scales)
    assert bool((scales >= SCALE_MIN).all())


@pytest.mark.parametrize("size", SIZES)
def test_no_weight_is_off_by_more_than_half_a_step(size: float) -> None:
    weight = rows(size)
    scales = scales_of(weight)
    error = (fake_quantize(weight) - weight).abs()
    assert bool((error <= scales[:, None] * 0.5 * (1 + 1e-5)).all())


@pytest.mark.parametrize("size", SIZES)
def test_quantizing_what_is_on_the_grid_changes_nothing(size: float) -> None:
    weight = rows(size)
    scales, codes = scales_of(weight), codes_of(weight, scales_of(weight))
    again = dequantize(codes, scales)
    assert torch.equal(scales_of(again), scales)
    assert torch.equal(codes_of(again, scales), codes)
    assert torch.equal(fake_quantize(again), again)


def test_the_largest_weight_of_a_row_takes_the_largest_code() -> None:
    weight = rows(1.0)
    codes = codes_of(weight, scales_of(weight))
    assert codes.dtype == torch.int8
    assert torch.equal(codes.abs().amax(1), torch.full((64,), 127, dtype=torch.int8))


def test_a_zero_row_gets_a_scale_that_is_not_zero() -> None:
    assert scales_of(torch.zeros(3, 4)).tolist() == [SCALE_MIN] * 3
    assert torch.equal(fake_quantize(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_ties_go_to_the_even_code() -> None:
    weight = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert codes_of(weight, scales_of(weight)).tolist() == [[127, 0, 2, 2, 0, -2]]


def test_gradient_passes_straight_through() -> None:
    weight = rows(1.0).requires_grad_()
    fake_quantize(weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))


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
