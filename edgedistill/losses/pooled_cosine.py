"""Embedding distillation: 1 - cosine between the student's projected text embedding and the teacher's.

The cosine term of DistilBERT (Sanh et al. 2019, section 3), taken on the pooled embedding.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from edgedistill.losses import LossBatch

PARAMS: dict[str, float] = {}
LIMITS: dict[str, tuple[float, float]] = {}
NEEDS = ("pooled",)
ZERO_AT_TEACHER = True


def loss(batch: LossBatch) -> Float[Tensor, ""]:
    """Mean over rows, in [0, 2], without a unit."""
    return (1.0 - cosine_similarity(batch.student_pooled, batch.teacher_pooled, dim=-1)).mean()
