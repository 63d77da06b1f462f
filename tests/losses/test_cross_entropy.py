"""Labels: rows without one do not count, smoothing is the published formula; and the hard labels of a teacher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from edgedistill.losses import LossBatch, cross_entropy, hard_pseudo_label


def batch_of(student: Tensor, teacher: Tensor | None = None, labels: Tensor | None = None) -> LossBatch:
    unused = torch.full((len(student), 1), float("nan"), dtype=student.dtype)
    if teacher is None:
        teacher = torch.full_like(student, float("nan"))
    return LossBatch(student, teacher, unused, unused, torch.full((len(student),), -1) if labels is None else labels)


def logits_of(rows: int = 5, classes: int = 4) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def ours(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    return cross_entropy.loss(batch_of(logits, labels=labels), smoothing)


def test_the_value_is_the_mean_negative_log_probability_of_the_label() -> None:
    logits, labels = logits_of(), torch.tensor([0, 3, 1, 2, 2])
    expected = -sum(log_softmax(logits[row], -1)[labels[row]] for row in range(5)) / 5
    torch.testing.assert_close(ours(logits, labels), expected)


def test_rows_without_a_label_count_neither_in_the_sum_nor_in_the_mean() -> None:
    logits, labels = logits_of(), torch.tensor([0, -1, 1, -1, 2])
    kept = torch.tensor([0, 2, 4])
    torch.testing.assert_close(ours(logits, labels), ours(logits[kept], labels[kept]))
    logits.requires_grad_()
    ours(logits, labels).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[[1, 3]], torch.zeros(2, 4, dtype=torch.float64))
    assert bool((logits.grad[kept] != 0).all())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_without_any_label_has_loss_zero_and_gradient_zero(smoothing: float) -> None:
    logits = logits_of().requires_grad_()
    value = ours(logits, torch.full((5,), -1), smoothing)
    value.backward()
    assert value.item() == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 0.9])
def test_smoothing_spreads_its_share_evenly_over_all_classes(smoothing: float) -> None:
    logits, labels = logits_of(), torch.tensor([0, -1, 1, 3, 2])
    target = torch.full((5, 4), smoothing / 4, dtype=torch.float64)
    target[torch.arange(5), labels.clamp(min=0)] += 1 - smoothing
    each = -(target * log_softmax(logits, -1)).sum(-1)
    torch.testing.assert_close(ours(logits, labels, smoothing), each[labels >= 0].mean())


def test_the_gradient_is_probability_minus_target() -> None:
    logits, labels = logits_of().requires_grad_(), torch.tensor([0, 3, 1, 2, 2])
    ours(logits, labels, 0.2).backward()
    target = torch.full((5, 4), 0.05, dtype=torch.float64)
    target[torch.arange(5), labels] += 0.8
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(-1) - target) / 5)


def test_hard_pseudo_labels_are_cross_entropy_with_the_argmax_of_the_teacher() -> None:
    student, teacher = logits_of(), logits_of().flip(0)
    hard = hard_pseudo_label.loss(batch_of(student, teacher))
    torch.testing.assert_close(hard, ours(student, teacher.argmax(-1)))


def test_hard_pseudo_labels_do_not_see_how_sure_the_teacher_is() -> None:
    student, teacher = logits_of(), logits_of().flip(0)
    values = {float(hard_pseudo_label.loss(batch_of(student, scale * teacher))) for scale in (0.1, 1.0, 50.0)}
    assert len(values) == 1
