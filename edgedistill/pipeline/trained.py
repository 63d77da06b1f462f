"""The finished folders that everything after training reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgedistill.specs import Profile
from edgedistill.store import Finished


@dataclass(frozen=True)
class Taught:
    """A teacher assistant: what it is, and its stages, the last of which holds its answers for the next to learn."""

    config: Mapping[str, Any]
    parameters: int
    stages: tuple[Finished, ...]


@dataclass(frozen=True)
class Trained:
    """Stages of one build. `float_student` is the last one without fake-quant, `last` the one that is frozen.

    `profile` says how each tensor is stored; `sensitivity` is the stage that decided it, where one did.
    """

    data: Finished
    teacher: Finished
    recorded: Finished
    start: Finished
    float_student: Finished
    last: Finished
    stages: dict[str, Finished]
    profile: Profile
    sensitivity: Finished | None = None
    assistants: tuple[Taught, ...] = ()


@dataclass(frozen=True)
class References:
    """The files that the ledger compares with: the teacher's does not depend on the student."""

    teacher: Finished
    student: Finished
