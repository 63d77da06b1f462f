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
from edgedistill.plan.stored import Known, Sizers
from edgedistill.students import Cost


class _Link(NamedTuple):
    """A segment in one format, in files with one grid or with both: bytes of its numbers and of its graph."""

    data: int
    graph: float
    data_low: int
    graph_low: float
    shared: frozenset[int]
    items: dict[Hashable, int]


class _Work(NamedTuple):
    """What a segment costs in any format; `narrow`: its numbers that can have 4 bits."""

    cost: Cost
    coded: int
    narrow: int


class Chains:
    """What the cores of one search have in common."""

    def __init__(self, problem: Problem, space: Space, known: Known) -> None:
        """Nothing is counted yet."""
        self._problem, self._space, self._known = problem, space, known
        self._links: dict[tuple[str, bool, Hashable, int], _Link] = {}
        self._works: dict[Hashable, _Work] = {}
        self._brings: dict[str, frozenset[str]] = {}

    def parts_of(self, core: Core) -> Parts:
        """A core's bytes in all ways to store it, its numbers and its work."""
        segments, problem = core.segments, self._problem
        works = [self._works.get(segment) or self._work(segment, n) for n, segment in enumerate(segments)]
        total = Cost(*map(sum, zip(*[one.cost for one in works], strict=True)))
        total = total._replace(peak_elements=max([one.cost.peak_elements for one in works]))
        every = [self._sizes(name, core) for name in problem.formats]
        sizes = every[0] if len(every) == 1 else [max(same) for same in zip(*every, strict=True)]
        signatures = len(problem.family.signatures(core.config, problem.profile.student.buckets))
        coded = sum([one.coded for one in works])
        narrow = [works[n + 1].narrow for n in layer_order(core.layers)] if self._space.low else []
        return Parts(
            sizes=lambda depth, small: sizes,
            rows=((0.0,),),
            parameters=total.weights,
            macs=total.macs,
            work=workload_of(total, coded, problem.scheme, sizes[0], signatures),
            narrow=lambda depth: list(accumulate(narrow, initial=0)),
        )

    def _sizes(self, name: str, core: Core) -> list[int]:
        """Bytes of the file with no, one and so on up to all blocks in 4 bits."""
        found = [round(self._total(self._sizer(name, False, core).plain, self._links_of(name, False, core)))]
        if self._space.low is None:
            return found
        sizers, links = self._sizer(name, True, core), self._links_of(name, True, core)
        both, order = self._total(sizers.plain, links), layer_order(core.layers)
        texts = self._texts(sizers.plain.format, core, order)
        for number, text in zip(order, texts, strict=True):
            link = links[number + 1]
            both += link.data_low - link.data + link.graph_low - link.graph
            found.append(round(both + text - sizers.said))
        return found

    def _total(self, sizer: Sizer, links: Sequence[_Link]) -> float:
        items: dict[Hashable, int] = {}
        for link in links:
            items.update(link.items)
        numbers = sum([link.data for link in links]) + sizer.shared([link.shared for link in links])
        return numbers + sum([link.graph for link in links]) + sum(items.values()) + sizer.text

    def _sizer(self, name: str, mixed: bool, core: Core) -> Sizers:
        return self._known.sizers(name, False, mixed, core.config)

    def _links_of(self, name: str, mixed: bool, core: Core) -> list[_Link]:
        found = []
        by_name = bool(self._problem.scheme.layers)  # which says of each layer by its name how it is stored
        for n, segment in enumerate(core.segments):
            key = name, mixed, segment, n if by_name else len(str(max(n - 1, 0)))
            found.append(self._links.get(key) or self._link(key, n, core))
        return found

    def _link(self, key: tuple[str, bool, Hashable, int], number: int, core: Core) -> _Link:
        name, mixed, segment, _ = key
        sizers = self._sizer(name, mixed, core)
        tensors = self._problem.family.segment_tensors(segment, number)
        piece = sizers.plain.piece(tensors)
        low = sizers.low.piece(tensors) if sizers.low else piece
        items = sizers.plain.items(segment, self._brought(name, core, sizers.plain))
        found = _Link(*_bytes(piece), *_bytes(low), shared=piece.numbers.shared, items=items)
        self._links[key] = found
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

    def _texts(self, format_name: str, core: Core, order: Sequence[int]) -> list[int]:
        """Bytes of the scheme in a file with one, two and so on up to all blocks in 4 bits."""
        if format_name != "coreml":
            return [0] * len(order)

        def count() -> list[int]:
            tensors = self._problem.family.tensors(core.config)
            schemes = (scheme_of(self._problem, tensors, self._space.low, False, n) for n in range(1, len(order) + 1))
            return [scheme_text(format_name, scheme) for scheme in schemes]

        lengths = tuple(len(self._problem.family.units(segment)) for segment in core.segments)
        return self._known.texts((format_name, lengths), count)


def _bytes(piece: Piece) -> tuple[int, float]:
    return sum(piece.numbers[:4]), piece.graph + piece.numbers.header
