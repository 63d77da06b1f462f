"""Losses: one file each, named as profiles write it.

A loss file defines:

- `PARAMS`: a literal dict of its parameters and their defaults, read at plan time without importing torch;
- `LIMITS`: a literal dict, for each parameter the lowest and highest value that is allowed;
- `NEEDS`: a literal tuple of what it asks of the teacher: "logits", "pooled", or "labels" of the data;
- `ZERO_AT_TEACHER`: True when the loss is 0 if the student answers exactly as the teacher does;
- `loss(batch, **params) -> Tensor`: the mean over the rows of the batch, in nats where it is a divergence.

The contract tests in `tests/losses` run over every file of this folder.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LossBatch:
    """What a loss may look at. `labels` is -1 where a row has none; `student_pooled` has the teacher's width."""

    student_logits: Float[Tensor, "batch classes"]
    teacher_logits: Float[Tensor, "batch classes"]
    student_pooled: Float[Tensor, "batch width"]
    teacher_pooled: Float[Tensor, "batch width"]
    labels: Int[Tensor, " batch"]
