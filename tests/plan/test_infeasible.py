"""A budget that nothing can meet: the message names what binds, what can be had, and how little would be enough."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest

from edgedistill import catalog
from edgedistill.errors import InfeasibleError
from edgedistill.plan import make_plan
from edgedistill.plan.naming import describe
from edgedistill.plan.space import whole_space
from edgedistill.specs import Budget, Profile, Target

Make = Callable[..., Profile]
PHONE = catalog.load_target("pixel8").model_copy(update={"budget": Budget()})
LINES = ("size_mb", "latency_p95_ms", "peak_memory_mb", "energy_mj")


def refusal(target: Target, profile: Profile) -> str:
    with pytest.raises(InfeasibleError) as caught:
        make_plan(target, profile)
    assert caught.value.exit_code == 6
    return str(caught.value)


def relaxed(message: str) -> Mapping[str, float]:
    found = re.search(r"smallest relaxation: (.*), which makes", message)
    assert found is not None
    return {name: float(value) for name, value in (item.split(" = ") for item in found[1].split(", "))}


@pytest.mark.parametrize("line", LINES)
def test_each_line_can_bind_and_its_relaxation_is_enough_and_tight(profile: Make, line: str) -> None:
    message = refusal(PHONE, profile(budget={line: 1e-4}))
    assert f"{line}: limit 0.0001 " in message
    assert "(from the profile 'test'); best achievable" in message
    assert "layers=1, width=64" in message
    limits = relaxed(message)
    assert set(limits) == {line}
    assert make_plan(PHONE, profile(budget=limits)).chosen.config["width"] == 64
    refusal(PHONE, profile(budget={line: limits[line] * 0.98}))


def test_lines_that_bind_are_told_from_those_that_leave_room(profile: Make) -> None:
    message = refusal(PHONE, profile(budget={"size_mb": 0.01, "peak_memory_mb": 100}))
    assert "size_mb: limit" in message
    assert "peak_memory_mb: limit" not in message
    least = re.search(r"leave room; the least that a student needs: peak_memory_mb ([\d.]+) of 100 MB", message)
    assert least is not None
    small = make_plan(PHONE, profile()).candidates[0].predictions
    assert float(least[1]) == pytest.approx(next(p.low for p in small if p.quantity == "peak_memory_mb"), rel=0.01)


def test_several_binding_lines_are_relaxed_together(profile: Make) -> None:
    message = refusal(PHONE, profile(budget=dict.fromkeys(LINES, 1e-4)))
    assert all(f"{line}: limit" in message for line in LINES)
    assert make_plan(PHONE, profile(budget=relaxed(message))).chosen.config["width"] == 64


def test_limits_that_contradict_each_other_are_shown_candidate_by_candidate(profile: Make) -> None:
    slow = {"layers": 6, "width": 64, "heads": 2, "ffn": 256, "vocabulary": 500}
    big = {"layers": 1, "width": 64, "heads": 2, "ffn": 128, "vocabulary": 8000}
    both = profile(student={"candidates": [slow, big]})
    cost = make_plan(PHONE, both).candidates
    assert cost[0].size.total_mb < cost[1].size.total_mb
    assert cost[0].predictions[0].low > cost[1].predictions[0].low
    limits = {"size_mb": cost[0].size.total_mb * 1.1, "latency_p95_ms": cost[1].predictions[0].low * 1.1}
    message = refusal(PHONE, profile(student={"candidates": [slow, big]}, budget=limits))
    assert "each limit can be met alone, but no candidate meets them all" in message
    assert "layers=6" in message
    assert "layers=1" in message
    relaxation = {**limits, **relaxed(message)}
    assert make_plan(PHONE, profile(student={"candidates": [slow, big]}, budget=relaxation)).chosen.feasible


def test_the_files_that_hold_the_limits_are_named(profile: Make) -> None:
    tight = PHONE.model_copy(update={"budget": Budget(size_mb=0.02)})
    assert "from the target 'pixel8')" in refusal(tight, profile())
    assert "from the target 'pixel8' and the profile 'test')" in refusal(tight, profile(budget={"size_mb": 0.01}))


def test_a_wrong_loss_is_reported_before_the_budget(profile: Make) -> None:
    stage = {"name": "a", "epochs": 1, "learning_rate": 1, "fake_quant": True, "losses": [{"loss": "nothing"}]}
    with pytest.raises(Exception, match="unknown name 'nothing'"):
        make_plan(PHONE, profile(stages=[stage], budget={"size_mb": 1e-3}))


def test_what_a_search_would_reach_is_said_and_is_what_it_reaches(profile: Make) -> None:
    """Students that a profile does not write out, as those with fewer bits, are part of the answer."""
    small = refusal(PHONE, profile(budget={"size_mb": 0.045}))
    found = re.search(r"With --search ([\d,]+) students can meet it as it is; it would take \((.*?)\), expected", small)
    assert found is not None
    space = whole_space("bert")
    assert space is not None
    asked = profile(student={"candidates": [], "space": space.model_dump()}, budget={"size_mb": 0.045})
    searched = make_plan(PHONE, asked)
    assert searched.search is not None
    assert (f"{searched.search.feasible:,}", describe(searched.chosen)) == found.groups()


def test_a_search_that_would_not_do_either_says_how_near_it_comes(profile: Make) -> None:
    message = refusal(PHONE, profile(budget={"size_mb": 0.01}))
    found = re.search(r"With --search less is enough: size_mb = ([\d.]+) makes \((.*)\) feasible", message)
    assert found is not None
    assert float(found[1]) < relaxed(message)["size_mb"]
    assert "in 4 bits" in found[2]
