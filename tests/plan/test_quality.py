"""What a student is expected to be worth, and what finished builds change about it."""

from __future__ import annotations

from collections.abc import Callable
from math import log

import pytest

from edgedistill import catalog
from edgedistill.plan import FinishedBuild, make_plan
from edgedistill.plan.quality import MACS, RATIO, TEACHER, quality_model
from edgedistill.specs import Budget, Profile

Make = Callable[..., Profile]
PHONE = catalog.load_target("pixel8")


def build(gap: float, ratio: float = 100.0, macs: int = 4_000_000, **changes: object) -> FinishedBuild:
    known: dict[str, object] = {
        "request": "r", "family": "bert", "parameters": round(TEACHER / ratio), "macs": macs, "int4_share": 0.0,
        "teacher_parameters": TEACHER, "assistants": 0, "correct": round(10_000 * (1 - gap)), "teacher_correct": 10_000,
        "rows": 11_000,
    }  # fmt: skip
    return FinishedBuild.model_validate({**known, **changes})


def test_the_prior_gives_back_the_builds_that_it_was_made_from() -> None:
    model = quality_model(TEACHER, ())
    assert model.gap(MACS, TEACHER / RATIO) == pytest.approx(0.002)
    assert model.gap(3.675e6, 215_693) == pytest.approx(0.0167, rel=0.02)


def test_more_compute_or_parameters_are_never_expected_to_hurt() -> None:
    for builds in ((), (build(0.001, 300, 1_000_000), build(0.2, 10, 60_000_000))):
        model = quality_model(TEACHER, builds)
        assert model.gap(2e6, 1e5) >= model.gap(4e6, 1e5) >= model.gap(4e6, 2e5)


def test_finished_builds_move_the_expectation_and_narrow_it() -> None:
    before, after = quality_model(TEACHER, ()), quality_model(TEACHER, [build(0.08)] * 5)
    old, new = (model.expect(4_000_000, TEACHER / 100, 0.0) for model in (before, after))
    assert new.median < old.median
    assert new.median == pytest.approx(0.92, abs=0.02)
    assert log((1 - new.low) / (1 - new.high)) < log((1 - old.low) / (1 - old.high))
    assert "5 finished builds" in new.method


def test_four_bits_cost_something(profile: Make) -> None:
    scheme = {"weights": {"bits": 4}, "embeddings": {"bits": 4}, "head": {"bits": 4}}
    eight, four = (make_plan(PHONE, profile(export={"scheme": one}), classes=5).chosen.quality for one in ({}, scheme))
    assert eight is not None
    assert four is not None
    assert 0.003 < eight.median - four.median < 0.006


def test_a_floor_of_quality_keeps_the_smallest_student_from_being_taken(profile: Make) -> None:
    free = {"optimize_for": "size", "budget": {"latency_p95_ms": 1e3}}
    target = PHONE.model_copy(update={"budget": Budget()})
    known = {"classes": 5, "teacher_parameters": TEACHER}
    assert make_plan(target, profile(**free), **known).chosen.config["width"] == 64  # type: ignore[arg-type]
    floored = make_plan(target, profile(**free, quality={"retained_min": 0.99}), **known)  # type: ignore[arg-type]
    assert floored.chosen.config["width"] == 128
    hopeless = make_plan(target, profile(**free, quality={"retained_min": 0.9999}), **known)  # type: ignore[arg-type]
    assert hopeless.chosen.config["width"] == 256
    assert any("no student that meets the budget is expected to keep" in note for note in hopeless.notes)


def test_confidence_decides_what_is_sure(profile: Make) -> None:
    line = make_plan(PHONE, profile()).candidates[2].predictions[0]
    limit = {"latency_p95_ms": line.median * 1.5, "energy_mj": 1e6}
    target = PHONE.model_copy(update={"budget": PHONE.budget.model_copy(update={"energy_mj": None})})
    careful = make_plan(target, profile(budget=limit)).candidates[2]
    bold = make_plan(target, profile(budget=limit, confidence=0.5)).candidates[2]
    assert careful.uncertain == ("latency_p95_ms",)
    assert bold.sure
