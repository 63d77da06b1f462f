"""Soft labels against closed forms, and proof that the usual mistakes would be caught."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax

from edgedistill.losses import LossBatch, soft_kl

Of = Callable[[Tensor, Tensor, float], Tensor]


def pair(rows: int = 4, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    teacher = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return student, teacher


def ours(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    rows = len(student)
    unused = torch.full((rows, 1), float("nan"), dtype=torch.float64)
    labels = torch.full((rows,), -1)
    return soft_kl.loss(LossBatch(student, teacher, unused, unused, labels), temperature)


def gradient_error(of: Of, temperature: float) -> float:
    """How far d loss / d student is from the closed form T(q - p) / rows."""
    student, teacher = pair()
    student.requires_grad_()
    of(student, teacher, temperature).backward()
    assert student.grad is not None
    q, p = softmax(student.detach() / temperature, -1), softmax(teacher / temperature, -1)
    return float((student.grad - temperature * (q - p) / len(student)).abs().max())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 8.0])
def test_the_gradient_is_temperature_times_the_difference_of_probabilities(temperature: float) -> None:
    assert gradient_error(ours, temperature) < 1e-15


WRONG: dict[str, Of] = {
    "probabilities instead of log-probabilities": lambda s, t, T: (
        T**2 * kl_div(softmax(s / T, -1), softmax(t / T, -1), reduction="batchmean")
    ),
    "teacher and student swapped": lambda s, t, T: ours(t, s, T),
    "no temperature squared": lambda s, t, T: ours(s, t, T) / T**2,
    "temperature once": lambda s, t, T: ours(s, t, T) / T,
    "mean over classes too": lambda s, t, T: ours(s, t, T) / s.shape[1],
    "sum over rows": lambda s, t, T: ours(s, t, T) * len(s),
    "teacher not softened": lambda s, t, T: (
        T**2 * kl_div(log_softmax(s / T, -1), softmax(t, -1), reduction="batchmean")
    ),
    "teacher shifted by one class": lambda s, t, T: ours(s, t.roll(1, -1), T),
    "student as its own teacher": lambda s, t, T: ours(s, s.detach(), T),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_closed_form_check_notices(mistake: str) -> None:
    assert gradient_error(WRONG[mistake], 3.0) > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_the_value_is_that_of_the_formula_written_naively(temperature: float) -> None:
    student, teacher = pair(rows=3, classes=4)
    total = 0.0
    for row in range(3):
        p = [math.exp(float(z) / temperature) for z in teacher[row]]
        q = [math.exp(float(z) / temperature) for z in student[row]]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(ours(student, teacher, temperature)) == pytest.approx(temperature**2 * total / 3, rel=1e-12)


def test_at_high_temperature_it_becomes_the_squared_distance_of_centred_logits() -> None:
    student, teacher = pair(classes=5)
    difference = student - teacher
    centred = difference - difference.mean(-1, keepdim=True)
    limit = (centred.square().sum(-1) / (2 * 5)).mean()
    ratio = float(ours(student, teacher, 1e3) / limit)
    assert ratio == pytest.approx(1.0, abs=5e-3)
    assert abs(float(ours(student, teacher, 1e4) / limit) - 1) < abs(ratio - 1) / 5


def test_a_constant_added_to_all_logits_of_a_row_changes_nothing() -> None:
    student, teacher = pair()
    shift = torch.tensor([[5.0], [-3.0], [0.0], [100.0]], dtype=torch.float64)
    torch.testing.assert_close(ours(student + shift, teacher - shift, 2.0), ours(student, teacher, 2.0))


def test_renaming_the_classes_changes_nothing() -> None:
    student, teacher = pair()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(student[:, order], teacher[:, order], 2.0), ours(student, teacher, 2.0))


def test_it_is_never_negative() -> None:
    for seed in range(50):
        assert float(ours(*pair(seed=seed), 1.7)) > 0


def test_float32_agrees_with_float64() -> None:
    student, teacher = pair()
    close = ours(student.float(), teacher.float(), 2.0)
    assert float(close) == pytest.approx(float(ours(student, teacher, 2.0)), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        ours(*pair(), temperature)
