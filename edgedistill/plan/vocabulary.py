"""No student is planned with more word pieces than its texts have: it would be predicted larger than it gets."""

from __future__ import annotations

from typing import Any

from edgedistill.plan.space import VOCABULARY
from edgedistill.specs import StudentSpec


def most_pieces(student: StudentSpec) -> int:
    """The largest vocabulary that the profile asks for, of the whole student, a candidate or an axis of the space."""
    asked: list[Any] = [student.vocabulary, *(one.get(VOCABULARY) for one in student.candidates)]
    if student.space is not None:
        asked += student.space.axes.get(VOCABULARY, ())
    return max(value for value in asked if isinstance(value, int))


def within(student: StudentSpec, pieces: int) -> StudentSpec:
    """The same students with at most so many pieces; what is no number stays, and is refused by name later."""
    changes: dict[str, Any] = {"vocabulary": min(student.vocabulary, pieces)}
    if student.candidates:
        changes["candidates"] = tuple(
            {key: _least(value, pieces) if key == VOCABULARY else value for key, value in one.items()}
            for one in student.candidates
        )
    if student.space is not None and VOCABULARY in student.space.axes:
        axis = dict.fromkeys(_least(value, pieces) for value in student.space.axes[VOCABULARY])
        axes = {**student.space.axes, VOCABULARY: tuple(axis)}
        changes["space"] = student.space.model_copy(update={"axes": axes})
    return student.model_copy(update=changes)


def _least(value: Any, pieces: int) -> Any:
    return min(value, pieces) if isinstance(value, int) and not isinstance(value, bool) else value
