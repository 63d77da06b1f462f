"""Among students that are costed: the front that none beats, the choice, and who is tied with it."""

from __future__ import annotations

from typing import Any

import pytest
from spaces import FREE, PHONE, SMALL_SPACE, Make, problem_of, spaced

from edgedistill.plan.choose import choose, ties
from edgedistill.plan.pareto import NEAR, front
from edgedistill.plan.space import space_of
from edgedistill.plan.sweep import SURE, Entry, sweep


def test_a_front_is_beaten_by_none_and_covers_all(profile: Make) -> None:
    asked = spaced(profile, SMALL_SPACE, mixed=True)
    problem = problem_of(asked, PHONE)
    assert asked.student.space is not None
    entries = sweep(problem, space_of(problem, asked.student.space, "here")).entries
    best = front(entries)

    def costs(one: Any) -> tuple[float, ...]:
        return one.size_mb, one.latency_ms, one.memory_mb, one.energy_mj

    assert 3 < len(best) < len(entries)

    def within(a: Any, b: Any, factor: float) -> bool:
        return a.quality >= b.quality and all(x <= factor * y for x, y in zip(costs(a), costs(b), strict=True))

    for one in best:
        assert not [o for o in entries if within(o, one, 1) and (o.quality, *costs(o)) != (one.quality, *costs(one))]
    for one in entries:
        assert any(within(kept, one, 1 + NEAR) for kept in best)


def test_one_cost_that_is_lower_is_enough_to_be_on_the_front() -> None:
    best = Entry(quality=0.99, size_mb=1, latency_ms=1, memory_mb=1, energy_mj=1, meets=2, stretch=0.5, core=0)
    cheaper = [
        best._replace(quality=0.98, **{name: 0.5}) for name in ("size_mb", "latency_ms", "memory_mb", "energy_mj")
    ]
    near = best._replace(quality=0.98, size_mb=0.99)
    worse = best._replace(quality=0.97)
    found = front([worse, near, *cheaper, best])
    assert found[0] == best
    assert set(found) == {best, *cheaper}


@pytest.mark.parametrize("aim", ["latency", "battery"])
def test_who_is_tied_with_the_choice_could_be_chosen_and_the_smallest_of_equals_is(profile: Make, aim: str) -> None:
    asked = spaced(
        profile, SMALL_SPACE, mixed=True, optimize_for=aim, quality={"retained_min": 0.95},
        budget={"peak_memory_mb": 5.4, "latency_p95_ms": 0.6},
    )  # fmt: skip
    problem = problem_of(asked, PHONE.model_copy(update={"budget": FREE}))
    assert asked.student.space is not None
    entries = sweep(problem, space_of(problem, asked.student.space, "here")).entries
    choice = choose(asked, entries)
    assert choice is not None
    chosen = choice.entry
    near = [one for one in entries if chosen.latency_ms / 1.5 < one.latency_ms < chosen.latency_ms * 1.5]
    tied = ties(asked, chosen, entries)
    assert tied
    assert {(one.meets, one.quality >= 0.95) for one in tied} == {(SURE, True)}
    assert any(one.quality < 0.95 for one in near)
    larger = chosen._replace(size_mb=chosen.size_mb + 0.1)
    assert choose(asked, [larger, *entries]) == choice._replace(pool=choice.pool + 1)
