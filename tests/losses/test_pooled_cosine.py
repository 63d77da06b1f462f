"""Embedding distillation looks at angles alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgedistill.losses import LossBatch, pooled_cosine


def ours(student: Tensor, teacher: Tensor) -> Tensor:
    unused = torch.full((len(student), 2), float("nan"), dtype=student.dtype)
    return pooled_cosine.loss(LossBatch(unused, unused, student, teacher, torch.full((len(student),), -1)))


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(5, 8, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("scale", [1e-3, 0.5, 7.0, 1e4])
def test_the_length_of_either_embedding_does_not_matter(scale: float) -> None:
    student, teacher = pair()
    torch.testing.assert_close(ours(scale * student, teacher), ours(student, teacher), rtol=1e-9, atol=0)
    torch.testing.assert_close(ours(student, scale * teacher), ours(student, teacher), rtol=1e-9, atol=0)


def test_turning_both_spaces_alike_does_not_matter() -> None:
    student, teacher = pair()
    turn, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))
    torch.testing.assert_close(ours(student @ turn, teacher @ turn), ours(student, teacher))


@pytest.mark.parametrize(("degrees", "expected"), [(0, 0.0), (60, 0.5), (90, 1.0), (180, 2.0)])
def test_the_value_is_one_minus_the_cosine(degrees: int, expected: float) -> None:
    angle = math.radians(degrees)
    student = torch.tensor([[3 * math.cos(angle), 3 * math.sin(angle)]], dtype=torch.float64)
    assert float(ours(student, torch.tensor([[2.0, 0.0]], dtype=torch.float64))) == pytest.approx(expected, abs=1e-12)


def test_a_silent_embedding_gives_a_finite_gradient() -> None:
    _, teacher = pair()
    student = torch.zeros(5, 8, dtype=torch.float64, requires_grad=True)
    ours(student, teacher).backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
