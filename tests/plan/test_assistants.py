"""When a teacher assistant is planned, how large it is, and what speaks against one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import log

import pytest

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan import FinishedBuild, make_plan
from edgedistill.specs import Plan, Profile

Make = Callable[..., Profile]
PHONE = catalog.load_target("pixel8")
TEACHER = 22_713_216


def plan_of(profile: Make, builds: tuple[FinishedBuild, ...] = (), **changes: object) -> Plan:
    asked = profile(optimize_for="size", **changes)
    return make_plan(PHONE, asked, rows=1000, classes=5, teacher_parameters=TEACHER, builds=builds, request="this")


def done(assistants: int, correct: int, request: str = "this") -> FinishedBuild:
    return FinishedBuild(
        request=request, family="bert", parameters=150_000, macs=2_000_000, int4_share=0, teacher_parameters=TEACHER,
        assistants=assistants, correct=correct, teacher_correct=950, rows=1000,
    )  # fmt: skip


def test_sizes_between_are_geometric(profile: Make) -> None:
    plan = plan_of(profile)
    assert plan.chosen.teacher_ratio is not None
    assert plan.chosen.teacher_ratio > 100
    sizes = [TEACHER, *(one.parameters for one in plan.assistants), plan.chosen.parameters]
    steps = [log(a / b) for a, b in pairwise(sizes)]
    assert len(plan.assistants) == 2
    assert max(steps) - min(steps) < 0.25
    assert max(steps) < log(10)


def test_each_is_a_stage_with_its_teacher_and_its_steps(profile: Make) -> None:
    plan = plan_of(profile)
    names = [stage.name for stage in plan.stages]
    assert names[4:7] == ["assistant 1", "assistant 2", "warm_up"]
    assert "learns from the teacher, 64 steps" in plan.stages[4].why
    assert "learns from assistant 1" in plan.stages[5].why


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_number_is_obeyed(profile: Make, count: int) -> None:
    assert len(plan_of(profile, assistants=count).assistants) == count


def test_near_enough_needs_none(profile: Make) -> None:
    asked = profile()
    near = make_plan(PHONE, asked, classes=5, teacher_parameters=5_000_000)
    assert near.chosen.teacher_ratio is not None
    assert near.chosen.teacher_ratio < 10
    assert near.assistants == ()


def test_the_default_build_was_measured_without_one() -> None:
    plan = make_plan(PHONE, catalog.load_profile("default"), rows=9000, classes=77, teacher_parameters=TEACHER)
    assert plan.assistants == ()
    assert any("a default build 31 times smaller lost 0.2%" in note for note in plan.notes)


def test_where_an_assistant_was_measured_to_win_nothing_none_is_planned(profile: Make) -> None:
    small = {"layers": 1, "width": 64, "heads": 2, "ffn": 256}
    asked = profile(student={"vocabulary": 2445, "candidates": [small]})
    plan = make_plan(PHONE, asked, rows=9000, classes=77, teacher_parameters=TEACHER)
    assert plan.chosen.teacher_ratio == pytest.approx(105, abs=2)
    assert plan.assistants == ()
    assert any("lost 1.7% of its teacher's accuracy without one and 1.6% with one" in note for note in plan.notes)


OTHER = {
    "more classes": ({"classes": 150}, "their data has 77 classes, this 150"),
    "fewer rows": ({"rows": 3000}, "their data has 9,504 training rows, this 3,000"),
    "a larger teacher": (
        {"teacher_parameters": 40_000_000},
        "their teacher has 22.7 million parameters, this one 40.0",
    ),
    "a smaller teacher": (
        {"teacher_parameters": 12_000_000},
        "their teacher has 22.7 million parameters, this one 12.",
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_what_was_measured_on_other_data_does_not_speak_against_an_assistant(case: str) -> None:
    changes, word = OTHER[case]
    known = {"rows": 9504, "classes": 77, "teacher_parameters": TEACHER}
    assert make_plan(PHONE, catalog.load_profile("default"), **known).assistants == ()
    plan = make_plan(PHONE, catalog.load_profile("default"), **{**known, **changes})
    assert plan.chosen.teacher_ratio is not None
    assert 10 < plan.chosen.teacher_ratio < 105
    assert len(plan.assistants) == 1
    assert any(f"say nothing of this one: {word}" in note for note in plan.notes), plan.notes


def far(assistants: int, correct: int, parameters: int) -> FinishedBuild:
    return done(assistants, correct).model_copy(update={"parameters": parameters})


def test_builds_of_another_ratio_are_not_compared(profile: Make) -> None:
    """A student near to its teacher loses less for that; one far from it more, assistants or not."""
    assert plan_of(profile, (done(0, 900), far(2, 890, 15_000))).assistants
    assert plan_of(profile, (far(0, 900, 15_000), far(2, 901, 2_000_000))).assistants


@pytest.mark.parametrize(
    ("builds", "expected", "word"),
    [
        ((done(0, 948),), 0, "a finished build of this kind lost 0.21% without one"),
        ((done(0, 948, "another"),), 2, "evenly on a log scale"),
        ((done(0, 900),), 2, "evenly on a log scale"),
        ((done(0, 900), done(2, 901)), 0, "lost 5.26% without and 5.16% with one"),
        ((done(0, 900), done(2, 940)), 2, "evenly on a log scale"),
    ],
)
def test_past_builds_decide(profile: Make, builds: tuple[FinishedBuild, ...], expected: int, word: str) -> None:
    plan = plan_of(profile, builds)
    assert len(plan.assistants) == expected
    assert any(word in note for note in plan.notes), plan.notes


def test_a_number_without_a_known_teacher_or_a_rule_is_refused(profile: Make) -> None:
    with pytest.raises(SpecError, match=r"assistants = 1: the teacher's size is not known"):
        make_plan(PHONE, profile(assistants=1))
    cnn = {
        "family": "cnn",
        "candidates": [{"image_size": 32, "stem_width": 8, "head_width": 32,
                        "stages": [{"expansion": 1, "kernel": 3, "stride": 2, "width": 8, "repeats": 1}]}],
    }  # fmt: skip
    scheme = {"activations": "static_int8"}
    with pytest.raises(SpecError, match="no rule how to size one of family 'cnn'"):
        make_plan(PHONE, profile(assistants=1, student=cnn, export={"scheme": scheme}), teacher_parameters=TEACHER)
    plan = make_plan(PHONE, profile(student=cnn, export={"scheme": scheme}), teacher_parameters=TEACHER)
    assert plan.assistants == ()
    assert any("no rule how to size" in note for note in plan.notes)
