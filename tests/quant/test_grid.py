"""The default weight grid, 8 bits per channel, against its definition: closed forms, not recorded outputs."""

from __future__ import annotations

import pytest
import torch
from grids import SIZES, rows

from edgedistill.quant.grid import SCALE_MIN, codes_of, dequantize, fake_quantize, scales_of


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
