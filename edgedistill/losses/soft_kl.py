"""Soft-label distillation: T² · KL(teacher ‖ student) at temperature T. Hinton, Vinyals, Dean 2015, equation 1-4."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from edgedistill.losses import LossBatch

PARAMS = {"temperature": 2.0}
LIMITS = {"temperature": (0.01, 100.0)}
NEEDS = ("logits",)
ZERO_AT_TEACHER = True


def loss(batch: LossBatch, temperature: float) -> Float[Tensor, ""]:
    """Mean over rows, in nats. T² keeps the gradient's size independent of T: it is T·(q - p) per logit.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if not temperature > 0:  # also refuses not-a-number
        raise ValueError(f"temperature must be positive, got {temperature}")
    student = log_softmax(batch.student_logits / temperature, dim=-1)
    teacher = log_softmax(batch.teacher_logits / temperature, dim=-1)
    return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
