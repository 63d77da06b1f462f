"""The finished folders that everything after training reads."""

from __future__ import annotations

from dataclasses import dataclass

from edgedistill.store import Finished


@dataclass(frozen=True)
class Trained:
    """Stages of one build. `float_student` is the last one without fake-quant, `last` the one that is frozen."""

    data: Finished
    teacher: Finished
    recorded: Finished
    start: Finished
    float_student: Finished
    last: Finished
    stages: dict[str, Finished]
