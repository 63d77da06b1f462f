"""The Pareto front: the students that no other beats in everything."""

from __future__ import annotations

from collections.abc import Iterable

from edgedistill.plan.sweep import Entry

NEAR = 0.03  # a student within 3 % in every cost of a better one is not shown beside it


def front(entries: Iterable[Entry]) -> list[Entry]:
    """Students of the Pareto front of size, latency, memory, energy and expected quality, best quality first.

    One that is left out is within `NEAR` in every cost of one that is kept and no better (epsilon dominance, Laumanns
    et al. 2002). One that is kept is beaten by none: whatever beats it comes before it in the order of quality, so it
    would be kept itself, or be near to one that is, which would then have kept this one out.
    """
    ordered = sorted(entries, key=lambda one: (-one.quality, one.size_mb, one.latency_ms, one.memory_mb))
    kept: list[tuple[float, float, float, float, Entry]] = []
    more = 1 + NEAR
    for one in ordered:
        size, latency, memory, energy = (
            more * one.size_mb, more * one.latency_ms, more * one.memory_mb, more * one.energy_mj,
        )  # fmt: skip
        for place, (a, b, c, d, _) in enumerate(kept):
            if a <= size and b <= latency and c <= memory and d <= energy:
                if place:  # what beat this one will beat its neighbours: look there first
                    kept.insert(0, kept.pop(place))
                break
        else:
            kept.append((one.size_mb, one.latency_ms, one.memory_mb, one.energy_mj, one))
    return sorted((item[-1] for item in kept), key=lambda one: -one.quality)
