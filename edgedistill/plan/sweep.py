"""Every student of a space, costed in parts: bytes and work of a student are sums over its stem, layers and tables.

The bytes are those of all ways to store a core (`stored.py`) and of a table of embeddings, so that a candidate costs a
few additions; time and energy are predicted in full for every core and depth. `tests/plan/test_space.py` compares with
`plan.costing`. What a plan shows or chooses is costed in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from edgedistill.plan.chain import Chains
from edgedistill.plan.parts import Parts, parts_of
from edgedistill.plan.predict import Figures, Predictor, predictor
from edgedistill.plan.problem import Problem, quantile
from edgedistill.plan.quality import INT4_LOSS
from edgedistill.plan.space import Space
from edgedistill.plan.stored import Known
from edgedistill.specs import PerGroup, SearchCounts

SURE, POSSIBLE, NO = 2, 1, 0
NEAR_BYTES = 128  # what a file aligns: by how much parts may miss its size; who is so near to the limit is let in here


class Entry(NamedTuple):
    """One student in figures: medians, of the device that needs most; `energy_mj` and latency are 0 if unpredicted.

    `stretch` is the largest factor by which a line of the budget has to grow to let it in.
    """

    quality: float
    size_mb: float
    latency_ms: float
    memory_mb: float
    energy_mj: float
    meets: int
    stretch: float
    core: int
    depth: int | None = None
    vocabulary: int | None = None
    small_embedding: bool = False
    small_layers: int = 0


class Swept(NamedTuple):
    """The students that can meet the budget, and what became of all."""

    entries: list[Entry]
    counts: SearchCounts


class _Line(NamedTuple):
    """One limited line at one depth: what it needs at least and with confidence."""

    least: float
    sure: float
    limit: float


class _Search(NamedTuple):
    """What all cores share: predictors by device, and `_memory_slopes`."""

    problem: Problem
    space: Space
    predictors: Sequence[Predictor]
    slopes: Sequence[tuple[float, float, float]]
    keep_all: bool


def sweep(problem: Problem, space: Space, *, keep_all: bool = False) -> Swept:
    """Cost every student; those that can meet the budget are returned, or all of them with `keep_all`.

    Those within `NEAR_BYTES` of the limit of the size are let in: what they need is known in full only.

    A deeper student of the same core, or one of a larger vocabulary, needs more of everything. So what a depth breaks
    with its lower bounds, the size of its smallest file and the low ends of time and energy, every deeper one breaks
    too: those are not costed.
    """
    found: list[Entry] = []
    evaluated = excluded = feasible = sure = 0
    known, predictors = (
        Known(problem, space.low),
        tuple(predictor(one.target, one.calibration) for one in problem.members),
    )
    as_given = Known(problem, None)
    at = _Search(problem, space, predictors, (), keep_all)
    chains = Chains(problem, space, known) if space.cores[0].segments else None
    for number, core in enumerate(space.cores):
        own, many = space.of(core), len(core.variants)
        parts = chains.parts_of(core) if chains else parts_of(problem, own, core, known if own is space else as_given)
        at = at._replace(space=own, slopes=at.slopes or _memory_slopes(problem, parts, predictors))
        everywhere = range(len(space.vocabularies))
        # where the vocabulary is multiplied, as by a decoder's head, each has a time of its own
        groups = [(place,) for place in everywhere] if parts.work_row else [tuple(everywhere)]
        stop = len(groups)
        for depth, (index, places) in product(space.depths, enumerate(groups)):
            amount = len(places) * own.stored(core.layers or depth or 0) * many
            column = None if index >= stop else _column(at, parts, number, depth, places)
            if column is None:
                stop, excluded = min(stop, index), excluded + amount
                continue
            evaluated += amount
            states = [entry.meets for entry in column]
            sure += many * states.count(SURE)
            feasible += many * (len(states) - states.count(NO))
            found += column if keep_all or NO not in states else [entry for entry in column if entry.meets]
    counts = SearchCounts(
        combinations=space.combinations,
        invalid=space.invalid,
        evaluated=evaluated,
        excluded=excluded,
        feasible=feasible,
        sure=sure,
    )
    return Swept(found, counts)


class _Column(NamedTuple):
    """What the students of one core and depth share; `memory` was predicted for a file of `at` bytes."""

    core: int
    depth: int | None
    places: tuple[int, ...]
    sizes: tuple[Sequence[int], ...]  # with the embedding as given, and in 4 bits
    at: float
    latency_ms: float
    energy_mj: float
    memory_mb: float
    memory_slope: float
    over: float  # the largest share of a limit that time and energy need at least
    certain: bool
    memory: tuple[tuple[_Line, tuple[float, float, float]], ...]
    parameters: float
    macs: float


def _column(at: _Search, parts: Parts, number: int, depth: int | None, places: tuple[int, ...]) -> list[Entry] | None:
    """The students of one core and depth; None if none of them, nor of any deeper ones, can meet the budget.

    `places` are those of the vocabularies among the space's.
    """
    problem, space = at.problem, at.space
    steps = 0 if depth is None else depth - (space.depths[0] or 0)
    rows = (space.vocabularies[places[0]] or 0) - (space.vocabularies[0] or 0)
    lines = _lines(at, parts, steps, rows)
    fixed, memory = _limited(problem, lines, at.slopes)
    over = max([line.least / line.limit for line in fixed], default=0.0)
    if not at.keep_all and over > 1:
        return None
    sizes = tuple(parts.sizes(depth or 1, small) for small in space.tables)
    tables = (min(both, key=sum) for both in parts.rows)
    least = min(min(ways) + table[place] for ways, table in zip(sizes, tables, strict=True) for place in places)
    if not at.keep_all and least > 1e6 * problem.size_limit_mb + NEAR_BYTES:
        return None
    column = _Column(
        core=number,
        depth=depth,
        places=places,
        sizes=sizes,
        at=parts.work.file_bytes,
        latency_ms=_most(lines, "latency_p95_ms"),
        energy_mj=_most(lines, "energy_mj"),
        memory_mb=_most(lines, "peak_memory_mb"),
        memory_slope=max(slope[1] for slope in at.slopes),
        over=over,
        certain=all(line.sure <= line.limit for line in fixed),
        memory=tuple(memory),
        parameters=parts.parameters + steps * parts.parameters_layer,
        macs=parts.macs + steps * parts.macs_layer + rows * parts.macs_row,
    )
    return _students(problem, space, parts, column)


def _students(problem: Problem, space: Space, parts: Parts, column: _Column) -> list[Entry]:
    """The inner loop: every vocabulary and number of 4-bit layers."""
    size_limit = 1e6 * problem.size_limit_mb + NEAR_BYTES
    loss = INT4_LOSS[space.low is not None and isinstance(space.low.grid.granularity, PerGroup)]
    core, depth, places, sizes, at, latency, energy, memory_mb, slope, over, certain, memory, body, macs = column
    wanted = problem.profile.student.vocabulary  # as `costing.credited` has it
    narrow = parts.narrow(depth or 0)
    found: list[Entry] = []
    for small, ways in enumerate(sizes):
        for place in places:
            vocabulary = space.vocabularies[place]
            more = 0 if vocabulary is None else vocabulary - (space.vocabularies[0] or 0)
            total = body + more * parts.parameters_row
            used = 0 if vocabulary is None else min(vocabulary, wanted) - (space.vocabularies[0] or 0)
            quality = 1.0 - problem.quality.gap(macs, body + used * parts.parameters_row)
            # of the share that 4 bits cost, what the table and what each layer costs
            table = loss * (parts.embedding_row * (vocabulary or 1) if small else 0.0) / total
            share, (plain, mixed) = loss / total, parts.rows[small]
            for low, way in enumerate(ways):
                size = way + (mixed if low else plain)[place]
                away, stretch = (size - at) / 1e6, size / size_limit
                stretch, state = stretch if stretch > over else over, SURE if certain else POSSIBLE
                for (need, want, limit), (low_slope, _, high_slope) in memory:
                    stretch = max(stretch, (need + low_slope * away) / limit)
                    if want + high_slope * away > limit:
                        state = POSSIBLE
                worth = max(quality - table - share * narrow[low], 0.0)
                found.append(
                    Entry(worth, size / 1e6, latency, memory_mb + slope * away, energy, state if stretch <= 1 else NO,
                          stretch, core, depth, vocabulary, bool(small), low)
                )  # fmt: skip
    return found


def _lines(at: _Search, parts: Parts, steps: int, rows: int) -> list[Sequence[Figures]]:
    """The predictions for every device at one depth, with the file of the least vocabulary and the given bits."""
    layer, row = dict(parts.work_layer), dict(parts.work_row)
    changes: dict[str, Any] = {
        name: round(getattr(parts.work, name) + steps * layer.get(name, 0.0) + rows * row.get(name, 0.0))
        for name in {*layer, *row}
    }
    work = parts.work.model_copy(update=changes) if changes else parts.work
    return [of(work) for of in at.predictors]


def _limited(
    problem: Problem, lines: Sequence[Sequence[Figures]], slopes: Sequence[tuple[float, float, float]]
) -> tuple[list[_Line], list[tuple[_Line, tuple[float, float, float]]]]:
    """The limited lines that do not depend on the file, and those of memory with their slopes by MB of file."""
    fixed: list[_Line] = []
    memory: list[tuple[_Line, tuple[float, float, float]]] = []
    for n, one in enumerate(problem.members):
        for line in lines[n]:
            limit = one.limits.get(line.quantity)
            if limit is None:
                continue
            found = _Line(line.low, quantile(line, problem.profile.confidence), limit)
            if line.quantity == "peak_memory_mb":
                memory.append((found, slopes[n]))
            else:
                fixed.append(found)
    return fixed, memory


def _most(lines: Sequence[Sequence[Figures]], quantity: str) -> float:
    return max((line.median for one in lines for line in one if line.quantity == quantity), default=0.0)


def _memory_slopes(problem: Problem, parts: Parts, predictors: Sequence[Predictor]) -> list[tuple[float, float, float]]:
    """For each device by how many MB of memory one MB of file adds: at the low end, the median and with confidence."""
    found = []
    for of in predictors:
        ends = []
        for size in (parts.work.file_bytes, parts.work.file_bytes + 1_000_000):
            lines = of(parts.work.model_copy(update={"file_bytes": size}))
            line = next(line for line in lines if line.quantity == "peak_memory_mb")
            ends.append((line.low, line.median, quantile(line, problem.profile.confidence)))
        found.append(tuple(b - a for a, b in zip(*ends, strict=True)))
    return [(low, middle, high) for low, middle, high in found]
