"""What rounding may do to the answers of a decoder as .tflite."""

from __future__ import annotations

import numpy as np
import torch
from planted_decoders import student

from edgedistill.exporters._divergence import Mismatch
from edgedistill.exporters.tflite.proving_values import near_whole, roundings
from edgedistill.quant.activations import quantize_rows


def test_float_logits_are_held_to_the_students_in_float64_from_end_to_end() -> None:
    """At 5e-6 for the median token and 1e-5 for the worst, or at twice what float32 takes the student itself."""
    exact = torch.randn(9, 50, generator=torch.Generator().manual_seed(0)).double()
    largest = exact.abs().max()

    def away(by: float, tokens: int) -> torch.Tensor:
        moved = exact.clone()
        moved[:tokens] += by * largest
        return moved

    def fine(theirs: torch.Tensor, *own: torch.Tensor) -> bool:
        try:
            found = near_whole(exact, theirs, lambda: own)
        except Mismatch:
            return False
        assert torch.equal(found.logits, exact[-len(theirs) :])
        return True

    near = away(1e-6, 9)
    assert fine(away(4.9e-6, 9), near)
    assert fine(away(9.9e-6, 4), near)
    assert not fine(away(5.1e-6, 9), near)
    assert not fine(away(1.1e-5, 1), near)
    assert not fine(away(float("nan"), 1), near)
    assert fine(away(1.1e-5, 1), near, away(6e-6, 1))
    assert not fine(away(1.3e-5, 1), near, away(6e-6, 1))
    assert not fine(away(1.1e-5, 9)[-1:], near)  # of the last tokens
    assert not fine(exact[:1], near)


def test_roundings_of_a_student_differ_and_leave_it_as_it_was() -> None:
    frozen = student()
    module, ids = frozen.to_module("float"), torch.arange(12)[None]
    with torch.no_grad():
        before, exact = module(ids).logits[0], frozen.to_module("float").double()(ids).logits[0]
    drawn = list(roundings(module, ids))
    assert not any(one.requires_grad for one in drawn)
    assert torch.equal(module(ids).logits[0], before)
    errors = [float((one - exact).abs().max() / exact.abs().max()) for one in drawn]
    assert len(set(errors)) == len(errors) == 4
    assert all(1e-8 < error < 1e-5 for error in errors)


def test_a_rows_scale_is_divided_once() -> None:
    """As IEEE 754 divides: the last bit decides the codes of values between two of them."""
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    span = np.maximum(x.numpy().max(1), 0) - np.minimum(x.numpy().min(1), 0)
    expected = np.float32(1) / (np.float32(255) / span)
    assert np.array_equal(quantize_rows(x)[1][:, 0].numpy(), expected)
