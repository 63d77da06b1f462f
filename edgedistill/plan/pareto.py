"""The Pareto front: the students that no other beats in everything."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from edgedistill.plan.sweep import Entry

RECENT = 16
NEAR = 0.03  # a student within 3 % in every cost of a better one is not shown beside it

_Point = tuple[float, float, float, float, int, Entry]


def front(entries: Iterable[Entry]) -> list[Entry]:
    """Students of the Pareto front of size, latency, memory, energy and expected quality, best quality first.

    One that is left out is within `NEAR` in every cost of one that is kept and no better (epsilon dominance, Laumanns
    et al. 2002). One that is kept is beaten by none: whatever beats it comes before it in the order of quality, so it
    would be kept itself, or be near to one that is, which would then have kept this one out.
    """
    ordered = sorted(entries, key=lambda one: (-one.quality, one.size_mb, one.latency_ms, one.memory_mb))
    kept: list[_Point] = []  # smallest files first
    recent: list[_Point] = []  # what beat the last ones beats their neighbours: look there first
    more = 1 + NEAR
    for number, one in enumerate(ordered):
        size, latency, memory, energy = (
            more * one.size_mb, more * one.latency_ms, more * one.memory_mb, more * one.energy_mj,
        )  # fmt: skip
        for place, (a, b, c, d, _, _) in enumerate(recent):
            if a <= size and b <= latency and c <= memory and d <= energy:
                if place:
                    recent.insert(0, recent.pop(place))
                break
        else:
            found = None
            for other in kept:
                if other[0] > size:
                    break
                if other[1] <= latency and other[2] <= memory and other[3] <= energy:
                    found = other
                    break
            if found is None:
                found = one.size_mb, one.latency_ms, one.memory_mb, one.energy_mj, number, one
                insort(kept, found)
            recent.insert(0, found)
            del recent[RECENT:]
    return sorted((item[-1] for item in kept), key=lambda one: -one.quality)
