"""The weight grids of 8 and 4 bits, per channel and per group, with scales of each type and by each rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from grids import BITS_4, BITS_8, EACH_DTYPE, EACH_GRID, GROUPS_4, every_scale, fitting, matrix

from edgedistill.quant.grid import (
    SCALE_MIN,
    ScaleDtype,
    clipped_gradients,
    codes_of,
    dequantize,
    fake_quantize,
    quantize,
    scales_of,
    spread,
)
from edgedistill.specs.quant import PerGroup, WeightGrid


@EACH_DTYPE
@pytest.mark.parametrize("grid", [BITS_8, BITS_4], ids=["int8", "int4"])
def test_every_scale_comes_back_from_the_largest_code_times_it(grid: WeightGrid, dtype: ScaleDtype) -> None:
    scales = every_scale(dtype)
    assert len(scales) == {"fp16": 30720, "bf16": 3840}[dtype]
    weight = (scales * grid.code_max)[:, None] * torch.tensor([-1.0, 0.5])
    assert torch.equal(scales_of(weight, grid, dtype), scales)


@EACH_DTYPE
def test_every_scale_comes_back_from_a_weight_clipped_to_minus_8(dtype: ScaleDtype) -> None:
    scales = every_scale(dtype)
    weight = scales[:, None] * torch.tensor([-8.0, 7.0, 1.0])
    assert torch.equal(scales_of(weight, BITS_4, dtype, "mse"), scales)


@EACH_DTYPE
@EACH_GRID
@pytest.mark.parametrize("rule", ["absmax", "mse"])
def test_what_is_on_a_grid_stays_there(grid: WeightGrid, dtype: ScaleDtype, rule: Any) -> None:
    for size in fitting(grid):
        weight = matrix(size)
        scales = scales_of(weight, grid, dtype, rule)
        codes = codes_of(weight, scales, grid)
        again = dequantize(codes, scales)
        assert torch.equal(scales_of(again, grid, dtype, rule), scales), size
        assert torch.equal(codes_of(again, scales, grid), codes), size


@EACH_DTYPE
def test_absmax_of_a_clipped_grid_is_another_grid_so_freezing_must_not_take_it(dtype: ScaleDtype) -> None:
    scales = torch.full((1,), 0.25)
    weight = dequantize(torch.tensor([[-8, 7, 3, 1]], dtype=torch.int8), scales)
    assert scales_of(weight, BITS_4, dtype).item() == pytest.approx(0.25 * 8 / 7, rel=2**-8)
    assert scales_of(weight, BITS_4, dtype, "mse").item() == 0.25  # 0.875 is one of the ratios


@EACH_DTYPE
@EACH_GRID
def test_no_weight_is_off_by_more_than_half_its_step(grid: WeightGrid, dtype: ScaleDtype) -> None:
    for size in fitting(grid):
        weight = matrix(size)
        scales = spread(scales_of(weight, grid, dtype), weight.shape)
        steps = (weight.double() / scales.double()).abs()
        # rounding has moved a scale by 2^-8 of itself at most, in bf16, so the largest weight is 127.4961 steps: no
        # code is clipped by more than the half step that rounding may cost anyway
        assert float(steps.max()) <= grid.code_max * (1 + 2**-8) * (1 + 2**-22) < grid.code_max + 0.4962
        error = (fake_quantize(weight, grid, dtype).double() - weight.double()).abs()
        allowance = weight.double().abs() * 2**-24  # the quotient weight / scale is rounded to float32
        assert bool((error <= scales.double() / 2 + allowance).all())


@EACH_DTYPE
@EACH_GRID
def test_gradient_is_exactly_one_everywhere(grid: WeightGrid, dtype: ScaleDtype) -> None:
    weight = matrix(1.0).requires_grad_()
    upstream = matrix(1.0, seed=1)
    (fake_quantize(weight, grid, dtype) * upstream).sum().backward()
    assert torch.equal(weight.grad, upstream)


@EACH_DTYPE
@EACH_GRID
@pytest.mark.parametrize("rule", ["absmax", "mse"])
def test_blocks_of_zeros_and_of_next_to_nothing_get_the_least_scale(
    grid: WeightGrid, dtype: ScaleDtype, rule: Any
) -> None:
    weight = matrix(1.0)
    weight[:2] = 0
    weight[2:4] = 1e-40  # subnormal even in float32
    weight[4:6, ::2] = SCALE_MIN * 3.4
    weight[4:6, 1::2] = 0
    scales = scales_of(weight, grid, dtype, rule)
    assert bool((scales[:6] == SCALE_MIN).all())
    again = dequantize(quantize(weight, scales, grid), scales)
    assert torch.equal(again[:4], torch.zeros(4, 96))
    assert torch.equal(again[4:6, 0], torch.full((2,), 3 * SCALE_MIN))


@EACH_DTYPE
@EACH_GRID
@pytest.mark.parametrize("rule", ["absmax", "mse"])
def test_scales_are_numbers_of_their_type_and_bf16_ones_of_fp16_too(
    grid: WeightGrid, dtype: ScaleDtype, rule: Any
) -> None:
    for size in fitting(grid):
        scales = scales_of(matrix(size), grid, dtype, rule)
        assert torch.equal(scales.half().float(), scales)
        assert bool((scales >= SCALE_MIN).all())
        assert dtype == "fp16" or torch.equal(scales.bfloat16().float(), scales)
        assert scales.shape == ((64, 3) if isinstance(grid.granularity, PerGroup) else (64,))


@EACH_DTYPE
@EACH_GRID
def test_a_scale_beyond_fp16_is_infinite_and_not_a_number_that_only_bf16_holds(
    grid: WeightGrid, dtype: ScaleDtype
) -> None:
    weight = torch.full((1, 32), 7e4 * grid.code_max)
    assert scales_of(weight, grid, dtype).flatten().tolist() == [float("inf")]


@pytest.mark.parametrize("shape", [(4, 31), (4, 33), (4, 16), (4, 32, 1, 1), (64, 2, 4, 4)])
def test_groups_that_do_not_divide_a_weight_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"groups of 32 need a matrix with a multiple of 32 columns, got \[\d+, "):
        scales_of(torch.ones(shape), GROUPS_4)


def test_a_kernel_has_one_scale_for_each_output_channel() -> None:
    weight = matrix(1.0)[:, :36].reshape(64, 4, 3, 3)
    scales = scales_of(weight, BITS_4, "fp16", "mse")
    assert scales.shape == (64,)
    assert torch.equal(fake_quantize(weight, BITS_4).flatten(1), fake_quantize(weight.flatten(1), BITS_4))


def test_groups_are_channels_of_the_weight_cut_into_pieces() -> None:
    weight = matrix(1.0)
    pieces = weight.view(-1, 32)
    assert torch.equal(scales_of(weight, GROUPS_4), scales_of(pieces, BITS_4).view(64, 3))
    assert torch.equal(fake_quantize(weight, GROUPS_4), fake_quantize(pieces, BITS_4).view(64, 96))


@EACH_DTYPE
@EACH_GRID
def test_mse_never_has_the_larger_squared_error_and_often_the_smaller(grid: WeightGrid, dtype: ScaleDtype) -> None:
    tails = matrix(1.0, seed=2) ** 3  # outliers, so that clipping pays
    for weight in (matrix(1.0), matrix(3e-4), tails, torch.zeros(3, 32)):
        scales = {rule: scales_of(weight, grid, dtype, rule) for rule in ("absmax", "mse")}
        error = {
            rule: (dequantize(quantize(weight, s, grid), s).double() - weight.double()).square().view(*s.shape, -1)
            for rule, s in scales.items()
        }
        least, plain = error["mse"].sum(-1), error["absmax"].sum(-1)
        assert bool((least <= plain * (1 + 1e-6)).all())  # the search adds squares up in float32
        assert bool((scales["mse"] <= scales["absmax"]).all())
        if weight is tails and grid.bits == 4:
            assert float(least.sum()) < 0.9 * float(plain.sum())


@pytest.mark.parametrize("rule", ["absmax", "mse"])
def test_rows_that_are_not_finite_get_scales_that_are_not(rule: Any) -> None:
    weight = torch.ones(3, 32)
    weight[0, 0], weight[1, 0] = float("nan"), float("inf")
    assert scales_of(weight, GROUPS_4, "fp16", rule).isfinite().flatten().tolist() == [False, False, True]


@EACH_DTYPE
def test_a_group_of_32_is_a_block_of_q4_0(dtype: ScaleDtype) -> None:
    quants = pytest.importorskip("gguf.quants")
    weight = matrix(1.0)
    scales = scales_of(weight, GROUPS_4, dtype, "mse")
    codes = codes_of(weight, scales, GROUPS_4)
    assert codes.unique().tolist() == list(range(-8, 8))
    # ggml's block_q4_0: the scale in fp16, then 16 bytes with code + 8 of value n low and of value n + 16 high
    halves = (codes.view(-1, 2, 16) + 8).to(torch.uint8)
    packed = halves[:, 0] | (halves[:, 1] << 4)
    blocks = np.concatenate([scales.view(-1, 1).half().numpy().view(np.uint8), packed.numpy()], 1)
    values = quants.dequantize(blocks.reshape(64, -1), quants.GGMLQuantizationType.Q4_0)
    assert np.array_equal(values, dequantize(codes, scales).numpy())


def test_given_scales_clip_and_have_the_gradients_of_the_paper() -> None:
    # n = 4 weights share a scale of 0.5, code_max 7: v/s = 1.2, -1.6, 9, -20; the last two are clipped to 7 and -8
    weight = torch.tensor([[0.6, -0.8, 4.5, -10.0]], requires_grad=True)
    scales = torch.tensor([0.5], requires_grad=True)
    out = fake_quantize(weight, BITS_4, "fp16", scales)
    assert out.tolist() == [[0.5, -1.0, 3.5, -4.0]]
    upstream = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    (out * upstream).sum().backward()
    assert weight.grad is not None
    assert scales.grad is not None
    assert weight.grad.tolist() == [[1.0, 10.0, 0.0, 0.0]]
    slopes = 1 * (1 - 1.2) + 10 * (-2 + 1.6) + 100 * 7 + 1000 * -8
    assert scales.grad.item() == pytest.approx(slopes / (4 * 7) ** 0.5, rel=1e-5)


@EACH_GRID
def test_the_gradient_of_a_scale_is_the_slope_between_roundings(grid: WeightGrid) -> None:
    weight, upstream = matrix(1.0).double(), matrix(1.0, seed=1).double()
    scales = (scales_of(weight.float(), grid) * 0.8).double()  # some are clipped
    codes = quantize(weight, scales, grid)
    _, found = clipped_gradients(upstream, weight, codes, scales, grid)
    # with the roundings fixed, the quantized weight is (v/s + c) * s with c = code - v/s inside, and code * s outside
    steps = weight / spread(scales, weight.shape)
    inside = (steps > grid.code_min) & (steps < grid.code_max)
    moved = scales.clone().requires_grad_()
    wide = spread(moved, weight.shape)
    surrogate = torch.where(inside, weight + (codes - steps).detach() * wide, codes * wide)
    (surrogate * upstream).sum().backward()
    assert moved.grad is not None
    damping = (weight.numel() / scales.numel() * grid.code_max) ** -0.5
    assert torch.allclose(found, moved.grad * damping)
