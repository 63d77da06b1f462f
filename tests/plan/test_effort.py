"""How long a build is said to take, and from what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan import make_plan
from edgedistill.plan.effort import HostSpeed, efforts, host_speed, training_macs
from edgedistill.specs import Plan, Profile

PHONE = catalog.load_target("pixel8")
TEACHER = 22_713_216
ROWS = 9_500  # of the default build's training part


def plan_of(profile: Profile, **changes: object) -> Plan:
    return make_plan(PHONE, profile.model_copy(update=changes), rows=ROWS, classes=77, teacher_parameters=TEACHER)


def test_the_stated_speed_covers_what_the_default_build_took() -> None:
    recorded = json.loads((Path(__file__).parents[2] / "bench/results/default_build.json").read_text())
    seen = max(float(run["seconds"]) for run in recorded["seeds"]) if "seeds" in recorded else 221.7
    (here,) = efforts(plan_of(catalog.load_profile("default")), ROWS, TEACHER, None)
    assert here.seconds_low <= seen <= here.seconds_high
    assert "no build was finished here yet" in here.method


def test_a_measured_speed_takes_its_place_and_narrows_the_interval() -> None:
    plan = plan_of(catalog.load_profile("default"))
    macs, steps = training_macs(plan, ROWS, TEACHER)
    assert steps == 2079 + 356 or steps > 0
    speed = host_speed([(macs, 100.0), (macs, 200.0), (macs, 300.0), (1e9, 50.0)])
    assert speed == HostSpeed(macs / 200, 3)
    (here,) = efforts(plan, ROWS, TEACHER, speed)
    assert here.seconds == pytest.approx(200 + 45)
    assert here.seconds_high / here.seconds < 2
    assert "3 finished builds" in here.method


def test_starts_tell_nothing_about_speed() -> None:
    assert host_speed([(1e9, 50.0)]) is None


def test_assistants_and_larger_students_take_longer() -> None:
    profile = catalog.load_profile("default")
    times = [efforts(plan_of(profile, assistants=n), ROWS, TEACHER, None)[0].seconds for n in (0, 1, 2)]
    assert times[0] < times[1] < times[2]
    small = profile.student.model_copy(update={"candidates": profile.student.candidates[-1:]})
    assert efforts(plan_of(profile, student=small, assistants=0), ROWS, TEACHER, None)[0].seconds < times[0]


def test_a_gpu_is_named_and_an_unknown_one_refused() -> None:
    plan = plan_of(catalog.load_profile("default"))
    assert [one.machine for one in efforts(plan, ROWS, TEACHER, None, "t4")] == ["this machine, 2 threads", "t4"]
    with pytest.raises(SpecError, match=r"--gpu 't5': not in the table; did you mean 't4'"):
        efforts(plan, ROWS, TEACHER, None, "t5")
