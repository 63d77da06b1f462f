"""One student for several devices: every budget holds on every one of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgedistill import catalog
from edgedistill.errors import InfeasibleError
from edgedistill.plan import make_plan
from edgedistill.specs import Budget, Plan, Profile

Make = Callable[..., Profile]
FAST, SLOW = (catalog.load_target(name) for name in ("pixel8", "galaxy_a14"))
APPLE = catalog.load_target("iphone15")


def latency(plan: Plan, number: int, end: str = "high") -> float:
    one = plan.candidates[number]
    lines = one.others["galaxy_a14"] if one.others else one.predictions
    return float(getattr(next(line for line in lines if line.quantity == "latency_p95_ms"), end))


def test_the_slowest_device_decides(profile: Make) -> None:
    free = [one.model_copy(update={"budget": Budget()}) for one in (FAST, SLOW)]
    both = make_plan(free[0], profile(), fleet=free[1:])
    assert both.chosen.config["width"] == 256
    between = (latency(both, 1) + latency(both, 2)) / 2
    tight = profile(budget={"latency_p95_ms": between})
    assert make_plan(free[0], tight).chosen.config["width"] == 256
    plan = make_plan(free[0], tight, fleet=free[1:])
    assert plan.chosen.config["width"] == 128
    assert plan.candidates[2].uncertain == ("galaxy_a14.latency_p95_ms",)
    assert "galaxy_a14.latency_p95_ms" in plan.unmeasured


def test_each_device_keeps_its_own_limits_and_the_smallest_size_counts(profile: Make) -> None:
    small = SLOW.model_copy(update={"budget": Budget(size_mb=1.0, latency_p95_ms=500)})
    plan = make_plan(FAST, profile(), fleet=[small])
    assert plan.budget.size_mb == 1.0
    assert plan.chosen.size.total_mb <= 1.0
    assert set(plan.chosen.others) == {"galaxy_a14"}


def test_formats_of_all_devices_are_written(profile: Make) -> None:
    plan = make_plan(FAST, profile(), fleet=[APPLE])
    assert plan.formats == (*FAST.formats, *(name for name in APPLE.formats if name not in FAST.formats))
    assert {f"export:{name}" for name in plan.formats} <= {stage.name for stage in plan.stages}


def test_the_device_that_cannot_be_satisfied_is_named(profile: Make) -> None:
    hard = SLOW.model_copy(update={"budget": Budget(latency_p95_ms=1e-4)})
    with pytest.raises(InfeasibleError) as caught:
        make_plan(FAST, profile(), fleet=[hard])
    told = str(caught.value)
    assert "targets 'pixel8', 'galaxy_a14'" in told
    assert "galaxy_a14.latency_p95_ms: limit 0.0001 ms (from the target 'galaxy_a14')" in told
    relaxed = float(told.split("smallest relaxation: galaxy_a14.latency_p95_ms = ")[1].split(",")[0])
    able = hard.model_copy(update={"budget": Budget(latency_p95_ms=relaxed)})
    assert make_plan(FAST, profile(), fleet=[able]).chosen.feasible
