"""A student is planned with the word pieces that its texts have, not with those it might have had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan import make_plan
from edgedistill.specs import Profile

Make = Callable[..., Profile]
PHONE = catalog.load_target("pixel8")
BIG = {"layers": 2, "width": 64, "heads": 2, "ffn": 256}


def sizes(profile: Profile, pieces: int | None) -> dict[int, float]:
    plan = make_plan(PHONE, profile, pieces=pieces)
    return {one.config["vocabulary"]: one.size.total_mb for one in plan.candidates}


def test_what_the_texts_lack_is_not_counted(profile: Make) -> None:
    given: dict[str, Any] = {"vocabulary": 2000, "candidates": [BIG, {**BIG, "vocabulary": 500}]}
    asked = profile(student=given)
    assert set(sizes(asked, None)) == {2000, 500}
    capped = sizes(asked, 900)
    assert set(capped) == {900, 500}
    assert capped[900] == sizes(profile(student={**given, "vocabulary": 900}), None)[900]
    assert set(sizes(asked, 5000)) == {2000, 500}


def test_the_plan_says_so_and_builds_what_it_says(profile: Make) -> None:
    plan = make_plan(PHONE, profile(), pieces=900)
    assert plan.profile.student.vocabulary == plan.chosen.config["vocabulary"] == 900
    assert "the training texts have 900 word pieces of the teacher's, of the 2000 asked for at most" in plan.notes
    assert not any("word pieces" in note for note in make_plan(PHONE, profile(), pieces=2000).notes)


def test_vocabularies_of_a_space_that_become_alike_are_one(profile: Make) -> None:
    axes = {"layers": [1, 2], "width": [64], "heads": [2], "ffn": [128], "vocabulary": [500, 1000, 3000]}
    student = {"vocabulary": 3000, "candidates": [], "space": {"axes": axes}}
    assert make_plan(PHONE, profile(student=student)).search.combinations == 6
    assert make_plan(PHONE, profile(student=student), pieces=900).search.combinations == 4


def test_a_vocabulary_that_is_no_number_is_still_refused_by_name(profile: Make) -> None:
    with pytest.raises(SpecError, match="vocabulary"):
        make_plan(PHONE, profile(student={"candidates": [{**BIG, "vocabulary": "many"}]}), pieces=900)
