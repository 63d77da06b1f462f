"""Students whose layers are unlike each other, as a cnn's blocks: each kind of segment is counted once for a search.

A family of such students defines `segments(config)`, `segment_tensors(segment, number)` and `segment_cost(segment)`:
bytes and work are sums over its segments, but for tensors of a file's graph that several segments have in common.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

from edgedistill.plan.cost import workload_of
from edgedistill.plan.parts import Parts
from edgedistill.plan.problem import Problem
from edgedistill.plan.size import Piece, Sizer, scheme_text
from edgedistill.plan.space import Core, Space, layer_order, scheme_of
from edgedistill.plan.stored import Known
from edgedistill.students import Cost


class _Link(NamedTuple):
    """Bytes of a segment in one format: in files with one grid, in those with both, and what 4 bits change there.

    `shared` and `items` are what several segments may have in common: lengths of zero points, tensors of the graph.
    """

    plain: float
    mixed: float
    change: float
    shared: frozenset[int]
    items: dict[Hashable, int]


class _Work(NamedTuple):
    """What a segment costs in any format; `narrow`: its numbers that can have 4 bits."""

    cost: Cost
    coded: int
    narrow: int


class _Stored(NamedTuple):
    """Segments in one format: sums of what links say, and what they have in common; `changes` by segment."""

    plain: float
    mixed: float
    changes: list[float]
    shared: frozenset[int]
    items: dict[Hashable, int]
    items_bytes: int


class _Run(NamedTuple):
    """All segments of a core but its last, which many cores differ in; `stored` by format."""

    segments: tuple[Hashable, ...]
    cost: Cost
    coded: int
    narrow: tuple[float, ...]
    stored: dict[str, _Stored]


class Chains:
    """What the cores of one search have in common."""

    def __init__(self, problem: Problem, space: Space, known: Known) -> None:
        """Nothing is counted yet."""
        self._problem, self._space, self._known = problem, space, known
        self._links: dict[tuple[str, Hashable, int], _Link] = {}
        self._works: dict[Hashable, _Work] = {}
        self._brings: dict[str, frozenset[str]] = {}
        self._run: _Run | None = None
        # of any student of the family, as no bytes of a graph depend on more than its segments
        of = space.cores[0].config
        self._sizers = {
            name: tuple(known.sizers(name, False, mixed, of) for mixed in (False, True)) for name in problem.formats
        }
        self._signatures = len(problem.family.signatures(of, problem.profile.student.buckets))

    def parts_of(self, core: Core) -> Parts:
        """A core's bytes in all ways to store it, its numbers and its work."""
        run, problem = self._run, self._problem
        if run is None or run.segments != core.segments[:-1]:
            run = self._run = self._new_run(core)
        last, number = core.segments[-1], len(core.segments) - 1
        work = self._works.get(last) or self._work(last, number)
        total = _sum([run.cost, work.cost])
        every = [self._sizes(name, core, run.stored[name]) for name in problem.formats]
        sizes = every[0] if len(every) == 1 else [max(same) for same in zip(*every, strict=True)]
        narrow = run.narrow
        return Parts(
            sizes=lambda depth, small: sizes,
            rows=(((0.0,), (0.0,)),),
            parameters=total.weights,
            macs=total.macs,
            work=workload_of(total, run.coded + work.coded, problem.scheme, sizes[0], self._signatures),
            narrow=lambda depth: narrow,
        )

    def _new_run(self, core: Core) -> _Run:
        segments = core.segments[:-1]
        works = [self._works.get(segment) or self._work(segment, n) for n, segment in enumerate(segments)]
        narrow = [works[n + 1].narrow for n in layer_order(core.layers)] if self._space.low else []
        return _Run(
            segments=segments,
            cost=_sum([one.cost for one in works]),
            coded=sum([one.coded for one in works]),
            narrow=tuple(accumulate(narrow, initial=0)),
            stored={name: self._store(name, core) for name in self._problem.formats},
        )

    def _store(self, name: str, core: Core) -> _Stored:
        links, items = self._links_of(name, core), dict[Hashable, int]()
        for link in dict(zip(core.segments, links, strict=False)).values():  # equal blocks have equal ones
            items.update(link.items)
        return _Stored(
            plain=sum([link.plain for link in links]),
            mixed=sum([link.mixed for link in links]),
            changes=[links[n + 1].change for n in layer_order(core.layers)],
            shared=frozenset[int]().union(*[link.shared for link in links]),
            items=items,
            items_bytes=sum(items.values()),
        )

    def _sizes(self, name: str, core: Core, run: _Stored) -> list[int]:
        """Bytes of the file with no, one and so on up to all blocks in 4 bits."""
        key, (plain, mixed) = (name, core.segments[-1], 0), self._sizers[name]
        link = self._links.get(key) or self._link(key, core)
        more = sum([size for item, size in link.items.items() if item not in run.items])
        common = plain.plain.shared([run.shared, link.shared]) + run.items_bytes + more
        found = [round(run.plain + link.plain + common + plain.plain.text)]
        if self._space.low is None:
            return found
        size = run.mixed + link.mixed + common + mixed.plain.text - mixed.said
        for change, text in zip(run.changes, self._texts(plain.plain.format, core), strict=True):
            size += change
            found.append(round(size + text))
        return found

    def _links_of(self, name: str, core: Core) -> list[_Link]:
        by_name = bool(self._problem.scheme.layers)  # which says of each layer by its name how it is stored
        found = []
        for n, segment in enumerate(core.segments[:-1]):
            key = name, segment, n if by_name else 1 + 10 * (n > 10)  # blocks differ in the digits of their numbers
            found.append(self._links.get(key) or self._link(key, core))
        return found

    def _link(self, key: tuple[str, Hashable, int], core: Core) -> _Link:
        name, segment, number = key
        tensors = tuple(self._problem.family.segment_tensors(segment, number))
        plain, mixed = self._sizers[name]
        piece, both = (self._known.piece((name, n, tensors), of.plain, tensors) for n, of in enumerate((plain, mixed)))
        low = self._known.piece((name, 2, tensors), mixed.low, tensors) if mixed.low else both
        found = self._links[key] = _Link(
            plain=_bytes(piece),
            mixed=_bytes(both),
            change=_bytes(low) - _bytes(both),
            shared=piece.numbers.shared,
            items=plain.plain.items(segment, self._brought(name, core, plain.plain)),
        )
        return found

    def _brought(self, name: str, core: Core, sizer: Sizer) -> frozenset[str]:
        """The parts of a whole student whose tensors are counted: a pad is one of them where any input has one."""
        if name not in self._brings:
            self._brings[name] = sizer.piece(self._problem.family.tensors(core.config)).parts
        return self._brings[name]

    def _work(self, segment: Hashable, number: int) -> _Work:
        family = self._problem.family
        tensors = family.segment_tensors(segment, number)
        sizes = [(tensor.kind, prod(tensor.shape)) for tensor in tensors]
        coded = sum(size for kind, size in sizes if kind in ("linear", "head", "convolution"))
        narrow = sum(size for kind, size in sizes if kind == "convolution")
        found = self._works[segment] = _Work(family.segment_cost(segment), coded, narrow)
        return found

    def _texts(self, format_name: str, core: Core) -> list[int]:
        """Bytes of the scheme in a file with one, two and so on up to all blocks in 4 bits."""
        if format_name != "coreml":
            return [0] * core.layers

        def count() -> list[int]:
            tensors = self._problem.family.tensors(core.config)
            schemes = (scheme_of(self._problem, tensors, self._space.low, False, n) for n in range(1, core.layers + 1))
            return [scheme_text(format_name, scheme) for scheme in schemes]

        lengths = tuple(len(self._problem.family.units(segment)) for segment in core.segments)
        return self._known.texts((format_name, lengths), count)


def _sum(costs: Sequence[Cost]) -> Cost:
    total = Cost(*map(sum, zip(*costs, strict=True)))
    return total._replace(peak_elements=max([one.peak_elements for one in costs]))


def _bytes(piece: Piece) -> float:
    return piece.graph + piece.numbers.bytes
