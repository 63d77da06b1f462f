"""The best student among those that meet the budget, and those that cannot be told from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgedistill.plan.sweep import NO, SURE, Entry
from edgedistill.specs import Profile

RANKED_FROM = 1.5  # two predictions nearer than this are in the wrong order too often (the rows in predict/data)
# In a space there is always a slower student that is expected to be a hair better; 2 000 held-out rows cannot see it.
SAME_QUALITY = 1e-3


class Choice(NamedTuple):
    """The chosen student, of how many; `reaches_floor`: whether it is expected to be as good as the profile asks."""

    entry: Entry
    pool: int
    reaches_floor: bool


def choose(profile: Profile, entries: Sequence[Entry]) -> Choice | None:
    """The best for `optimize_for` among those whose budget holds with confidence, else among those that can meet it.

    Students that are expected to keep less than `quality.retained_min` are considered when no other is left. None: no
    student can meet the budget. Ties go to the one that is named first.
    """
    pool = [one for one in entries if one.meets == SURE] or [one for one in entries if one.meets != NO]
    if not pool:
        return None
    floor = profile.quality.retained_min or 0.0
    good = [one for one in pool if one.quality >= floor]
    if not good:
        return Choice(max(pool, key=lambda one: one.quality), len(pool), False)
    return Choice(_best(profile, good), len(pool), True)


def _best(profile: Profile, pool: Sequence[Entry]) -> Entry:
    if profile.optimize_for == "quality":
        best = max(one.quality for one in pool)
        if profile.student.space is None:
            return next(one for one in pool if one.quality == best)
        near = [one for one in pool if one.quality >= best - SAME_QUALITY]
        return min(near, key=lambda one: (one.latency_ms, one.size_mb, -one.quality))
    if profile.optimize_for == "size":
        return min(pool, key=lambda one: (one.size_mb, -one.quality))
    if profile.optimize_for == "battery" and any(one.energy_mj for one in pool):
        return min(pool, key=lambda one: (one.energy_mj, -one.quality, one.size_mb))
    return min(pool, key=lambda one: (one.latency_ms, -one.quality, one.size_mb))


def ties(profile: Profile, chosen: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """Students that might have been chosen, and whose predicted latency is too near to the chosen one's to be ranked.

    They meet the budget as surely as the chosen one and are expected to be as good as the profile asks, if it is.
    """
    low, high = chosen.latency_ms / RANKED_FROM, chosen.latency_ms * RANKED_FROM
    floor = min(profile.quality.retained_min or 0.0, chosen.quality)
    return [
        one
        for one in entries
        if one != chosen and one.meets >= chosen.meets and one.quality >= floor and low < one.latency_ms < high
    ]
