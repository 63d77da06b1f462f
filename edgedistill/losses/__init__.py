"""Losses: one file each, named as profiles write it.

A loss file defines:

- `PARAMS`: a literal dict of its parameters and their defaults, read at plan time without importing torch;
- `NEEDS`: a literal tuple of what it asks of the teacher: "logits", "pooled", or "labels" of the data;
- `ZERO_AT_TEACHER`: True when the loss is 0 if the student answers exactly as the teacher does;
- `loss(batch, **params) -> Tensor`: the mean over the rows of the batch, in nats where it is a divergence.

The contract tests in `tests/losses` run over every file of this folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LossBatch:
    """What a loss may look at. Shapes: logits [batch, classes], pooled [batch, width], labels [batch].

    `labels` is -1 where a row has none. `student_pooled` is already projected to the teacher's width.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    student_pooled: Tensor
    teacher_pooled: Tensor
    labels: Tensor
