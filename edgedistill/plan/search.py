"""Which student: every candidate costed, the best chosen, and what else was possible."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from edgedistill.errors import SpecError
from edgedistill.plan import choose, pareto
from edgedistill.plan.costing import cost, fill, needs_of, predicted
from edgedistill.plan.infeasible import Beyond, infeasible
from edgedistill.plan.naming import describe
from edgedistill.plan.problem import Problem
from edgedistill.plan.space import Space, config_of, scheme_of, space_of, whole_space
from edgedistill.plan.storable import check_stored, written
from edgedistill.plan.sweep import NEAR_BYTES, NO, POSSIBLE, SURE, Entry, Swept, sweep
from edgedistill.plan.vocabulary import within
from edgedistill.specs import Candidate, FrontPoint, SearchCounts

SHOWN = 10  # of the front's students, how many are costed in full beside the chosen one
FRONT = 60  # points of a front that a plan carries
Lookup = Callable[[Entry], Candidate]


class Found(NamedTuple):
    """The chosen student among all, those shown beside it, and how the choice was made."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    front: tuple[FrontPoint, ...]
    counts: SearchCounts
    ties: tuple[str, ...]
    ties_total: int
    choice: choose.Choice


def search(problem: Problem) -> Found:
    """Cost the profile's candidates, or its space, and choose.

    Raises:
        SpecError: if a candidate is not a valid configuration of the family, or no combination of a space is.
        InfeasibleError: if no student can meet the budget.
    """
    if problem.profile.student.space is None:
        return _among_listed(problem)
    with _without_collector():
        found = _in_space(problem)
    if isinstance(found, Found):
        return found
    raise infeasible(problem, found)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's cycle collector would walk 10^5 students again and again, and find nothing: a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def listed(problem: Problem) -> tuple[Candidate, ...]:
    """Every written candidate with its cost, in the profile's order.

    Raises:
        SpecError: if one is not a valid configuration of the family, or cannot be stored.
    """
    configs, every = [], written(problem.family, problem.profile.student.candidates)
    for number, given in enumerate(problem.profile.student.candidates):
        where = f"profile {problem.profile.name!r}: student.candidates[{number}]"
        config = fill(problem, dict(given), where)
        tensors = problem.family.tensors(config)
        scheme = problem.profile.export.widest_use
        check_stored(problem.formats, problem.family, scheme, where, tensors, others=every)
        configs.append(config)
    return tuple(cost(problem, config, problem.scheme) for config in configs)


def _among_listed(problem: Problem) -> Found:
    found = listed(problem)
    entries = [_entry(problem, one, number) for number, one in enumerate(found)]
    choice = choose.choose(problem.profile, entries)
    if choice is None:
        raise infeasible(problem, found, _elsewhere(problem))
    counts = SearchCounts(
        combinations=len(found),
        invalid=0,
        evaluated=len(found),
        excluded=0,
        feasible=sum(one.meets != NO for one in entries),
        sure=sum(one.meets == SURE for one in entries),
    )
    return _found(problem, choice, entries, found, counts, lambda entry: found[entry.core])


def _elsewhere(problem: Problem) -> Beyond | None:
    """What a search of the family's whole space would find; None: the family has none, or it holds nothing better."""
    space = whole_space(problem.profile.student.family)
    if space is None:
        return None
    student = problem.profile.student.model_copy(update={"candidates": (), "space": space})
    student = student if problem.pieces is None else within(student, problem.pieces)
    other = problem._replace(profile=problem.profile.model_copy(update={"student": student}))
    try:
        with _without_collector():
            found = _in_space(other)
    except SpecError:
        return None  # a search would be refused: formats that cannot store what the space holds
    if isinstance(found, Found):
        return Beyond((found.chosen,), found.counts.feasible)
    return Beyond(tuple(found), 0)


def _in_space(problem: Problem) -> Found | list[Candidate]:
    """The choice; where no student can meet the budget, those that need least of each line and the nearest to all."""
    assert problem.profile.student.space is not None
    where = f"profile {problem.profile.name!r}: student.space"
    space = space_of(problem, problem.profile.student.space, where)
    swept = sweep(problem, space)
    exact: dict[Entry, Candidate] = {}

    def look(entry: Entry) -> Candidate:
        if entry not in exact:
            exact[entry] = _in_full(problem, space, entry, where)
        return exact[entry]

    entries, counts = _settled(problem, space, swept, look)
    while True:
        choice = choose.choose(problem.profile, entries)
        if choice is None:
            entries, nearest = _last(problem, space, look)
            if not entries:
                return nearest
            continue
        chosen = look(choice.entry)
        if chosen.feasible and (chosen.sure or choice.entry.meets != SURE):
            break
        entries = _without(problem, entries, choice.entry, chosen)
    best = pareto.front(entries)
    shown = _spread([one for one in best if one is not choice.entry], SHOWN)
    candidates = (chosen, *(look(one) for one in shown))
    return _found(problem, choice, entries, candidates, counts, look, best)


def _settled(problem: Problem, space: Space, swept: Swept, look: Lookup) -> tuple[list[Entry], SearchCounts]:
    """The swept students without those near to the limit of the size that break it in full."""
    limit = problem.size_limit_mb
    near = [one for one in swept.entries if abs(one.size_mb - limit) * 1e6 <= NEAR_BYTES and not look(one).feasible]
    if not near:
        return swept.entries, swept.counts
    amounts = [(len(space.cores[one.core].variants), one.meets == SURE) for one in near]
    counts = swept.counts.model_copy(
        update={
            "feasible": swept.counts.feasible - sum(amount for amount, _ in amounts),
            "sure": swept.counts.sure - sum(amount for amount, sure in amounts if sure),
        }
    )
    broken = set(near)
    return [one for one in swept.entries if one not in broken], counts


def _without(problem: Problem, entries: Sequence[Entry], wrong: Entry, exact: Candidate) -> list[Entry]:
    """The entries without one that fails in full, and without those that the same error of its size would let in.

    Parts add up exactly but for what a file shares or aligns: a percent or two where it mixes grids.
    """
    off = max(exact.size.total_mb / wrong.size_mb, 1.0)
    mixed = wrong.small_embedding or wrong.small_layers > 0
    return [
        one
        for one in entries
        if one is not wrong
        and ((one.small_embedding or one.small_layers > 0) != mixed or one.size_mb * off <= problem.size_limit_mb)
    ]


def _in_full(problem: Problem, space: Space, entry: Entry, where: str) -> Candidate:
    config = config_of(problem, space.cores[entry.core].variants[0], entry.depth, entry.vocabulary, where)
    tensors = problem.family.tensors(config)
    scheme = scheme_of(problem, tensors, space.low, entry.small_embedding, entry.small_layers)
    return cost(problem, config, scheme)


def _last(problem: Problem, space: Space, look: Lookup) -> tuple[list[Entry], list[Candidate]]:
    """Students that meet the budget in full where no sum of parts does, as one whose need is just the limit; and all
    that need least of each line, with the one nearest to the whole budget."""
    entries = sweep(problem, space, keep_all=True).entries
    keys: Sequence[Callable[[Entry], Any]] = (
        lambda one: (one.stretch, one.size_mb),
        lambda one: one.size_mb,
        lambda one: (one.latency_ms, one.size_mb),
        lambda one: one.memory_mb,
        lambda one: (one.energy_mj, one.size_mb),
    )
    least = dict.fromkeys(min(entries, key=key) for key in keys)
    fitting = [one._replace(meets=POSSIBLE) for one in least if look(one).feasible]
    return fitting, [look(one) for one in least]


def _found(
    problem: Problem,
    choice: choose.Choice,
    entries: Sequence[Entry],
    candidates: tuple[Candidate, ...],
    counts: SearchCounts,
    look: Lookup,
    best: Sequence[Entry] | None = None,
) -> Found:
    best = pareto.front(entries) if best is None else best
    chosen = choice.entry
    kept = _spread([one for one in best if one is not chosen], FRONT - 1)
    points = sorted([chosen, *kept], key=lambda one: -one.quality)
    tied = choose.ties(problem.profile, chosen, entries)
    near = set(tied)
    named = _spread([one for one in best if one in near], 5)
    return Found(
        chosen=look(chosen),
        candidates=candidates,
        front=tuple(_point(look(one), chosen=one is chosen) for one in points),
        counts=counts,
        ties=tuple(describe(look(one)) for one in named),
        ties_total=len(tied),
        choice=choice,
    )


def _entry(problem: Problem, one: Candidate, number: int) -> Entry:
    limits = problem.limits()
    stretch = max((need / limits[name] for name, need in needs_of(problem, one).items()), default=0.0)
    return Entry(
        quality=one.quality.median if one.quality else 0.0,
        size_mb=one.size.total_mb,
        latency_ms=predicted(one, "latency_p95_ms") or 0.0,
        memory_mb=predicted(one, "peak_memory_mb") or 0.0,
        energy_mj=predicted(one, "energy_mj") or 0.0,
        meets=SURE if one.sure else POSSIBLE if one.feasible else NO,
        stretch=stretch,
        core=number,
    )


def _point(one: Candidate, *, chosen: bool) -> FrontPoint:
    return FrontPoint(
        student=describe(one),
        size_mb=one.size.total_mb,
        latency_p95_ms=predicted(one, "latency_p95_ms"),
        peak_memory_mb=predicted(one, "peak_memory_mb") or 0.0,
        energy_mj=predicted(one, "energy_mj"),
        expected_quality=one.quality.median if one.quality else 0.0,
        meets="sure" if one.sure else "possible" if one.feasible else "no",
        chosen=chosen,
    )


def _spread(entries: Sequence[Entry], most: int) -> list[Entry]:
    """At most so many of them, evenly in their order, ends included."""
    if len(entries) <= most:
        return list(entries)
    return [entries[round(n * (len(entries) - 1) / (most - 1))] for n in range(most)]
