"""What is known of a build before anything slow: how the teacher is fit, where the student starts, its word pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgedistill import catalog, students
from edgedistill.data import Row
from edgedistill.data.tokenizer import plain_tokenizer
from edgedistill.errors import SpecError, TeacherError
from edgedistill.plan.vocabulary import most_pieces
from edgedistill.specs import FitSpec, Profile, StudentSpec
from edgedistill.teachers import Located


def resolved_fit(fit: FitSpec, located: Located, labels: tuple[str, ...]) -> FitSpec:
    """The fit that is really done: `auto` is `none` for a classifier that has labels of its own, otherwise `head`."""
    if fit.method != "auto":
        return fit
    return fit.model_copy(update={"method": "none" if located.is_classifier else "head"})


def resolved_start(student: StudentSpec, config: dict[str, Any], located: Located) -> StudentSpec:
    """The start that is really taken, known before anything slow: `auto` is `layers` where they fit, else `embeddings`.

    Raises:
        TeacherError, SpecError: `layers` was asked for, and this student cannot be cut from this teacher.
    """
    if student.init not in ("auto", "layers"):
        return student
    family = catalog.load_plugin("students", student.family)
    try:
        family.check_layers(family.Config(**config), located.config)
    except (TeacherError, SpecError):
        if student.init == "layers":
            raise
        return student.model_copy(update={"init": "embeddings"})
    return student.model_copy(update={"init": "layers"})


def count_pieces(profile: Profile, located: Located, rows: Sequence[Row]) -> int | None:
    """The pieces that the start of this student would keep of the training `rows`, at most the largest asked for.

    None where the family keeps none of its teacher's, or the teacher's tokenizer takes more than a plan may import.
    """
    counter = students.vocabulary_part(profile.student.family)
    if counter is None:
        return None
    tokenizer = plain_tokenizer(located.folder)
    if tokenizer is None:
        return None
    return int(counter.pieces(tokenizer, [row.text for row in rows], most_pieces(profile.student)))
