"""Hard distillation: cross-entropy with the teacher's most likely class. Lee 2013, 'Pseudo-Label'."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from edgedistill.losses import LossBatch

PARAMS: dict[str, float] = {}
LIMITS: dict[str, tuple[float, float]] = {}
NEEDS = ("logits",)
ZERO_AT_TEACHER = False


def loss(batch: LossBatch) -> Float[Tensor, ""]:
    """Mean over rows, in nats."""
    return cross_entropy(batch.student_logits, batch.teacher_logits.argmax(-1))
