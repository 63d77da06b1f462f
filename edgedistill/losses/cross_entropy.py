"""Cross-entropy with the data's own labels, optionally smoothed (Szegedy et al. 2016, section 7)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from edgedistill.losses import LossBatch

PARAMS = {"smoothing": 0.0}
LIMITS = {"smoothing": (0.0, 0.99)}
NEEDS = ("labels",)
ZERO_AT_TEACHER = False


def loss(batch: LossBatch, smoothing: float) -> Float[Tensor, ""]:
    """Mean over the rows that have a label, in nats; 0 when no row has one.

    `smoothing` in [0, 1): that share of the target is spread evenly over all classes.
    """
    labelled = (batch.labels >= 0).sum().clamp(min=1)
    total = cross_entropy(
        batch.student_logits, batch.labels, ignore_index=-1, reduction="sum", label_smoothing=smoothing
    )
    return total / labelled
