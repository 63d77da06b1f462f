"""A core's bytes, numbers and work, and what a layer or a row of the vocabulary adds: differences of full costs.

Of students whose layers are alike; `chain.py` has the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

from edgedistill.plan.cost import inference
from edgedistill.plan.predict import Workload
from edgedistill.plan.problem import Problem
from edgedistill.plan.size import largest
from edgedistill.plan.space import DEPTH, VOCABULARY, Core, Space, scheme_of
from edgedistill.plan.stored import Known, StoredSizes
from edgedistill.specs import QuantScheme, Spec
from edgedistill.students import StoredTensor

Tables = tuple[tuple[float, ...], tuple[float, ...]]


class Parts(NamedTuple):
    """Bytes of a core in all ways to store it, its numbers at its least depth and vocabulary, what each step adds."""

    # at a depth, with the embedding as given or in 4 bits: bytes for each number of layers in 4 bits, from none on
    sizes: Callable[[int, bool], Sequence[int]]
    # what each vocabulary adds, by the embedding's grid; first where no layer is in 4 bits, then where any is
    rows: tuple[Tables, ...]
    parameters: float
    macs: float
    work: Workload
    narrow: Callable[[int], Sequence[float]]  # at a depth: numbers in 4 bits for each number of such layers
    parameters_layer: float = 0.0
    parameters_row: float = 0.0
    embedding_row: float = 0.0
    macs_layer: float = 0.0
    macs_row: float = 0.0
    work_layer: tuple[tuple[str, float], ...] = ()
    work_row: tuple[tuple[str, float], ...] = ()


class _Corners(NamedTuple):
    """A core at its least depth and vocabulary, one deeper, one with more rows; and by how many layers and rows."""

    configs: dict[str, Spec]
    tensors: dict[str, tuple[StoredTensor, ...]]
    macs: dict[str, int]
    layers: int
    rows: int


def parts_of(problem: Problem, space: Space, core: Core, known: Known) -> Parts:
    """Full costs at the corners of a core, and their differences; its bytes in all ways to store it."""
    corners, buckets, plain = _corners(problem, space, core), problem.profile.student.buckets, problem.scheme
    configs, tensors, macs, deeper, wider = corners
    # the deeper corner: a student of one layer is not like the others
    sizes = StoredSizes(known, tensors["far"], configs["far"], core.brought).sizes
    size = sizes(space.depths[0] or 1, False)[0]
    works: dict[str, Workload] = {}
    counts: dict[str, int] = {}
    weights: dict[str, int] = {}
    for name, config in configs.items():
        same = next((other for other in works if configs[other] is config), None)
        if same:
            works[name], counts[name], weights[name] = works[same], counts[same], weights[same]
            continue
        works[name] = inference(problem.family, config, plain, buckets, round(size))
        counts[name] = _numbers(tensors[name])
        weights[name] = _numbers(tensors[name], "linear")
    each = (weights["far"] - weights["near"]) / deeper
    return Parts(
        sizes=sizes,
        rows=_tables(problem, space, corners, known),
        parameters=counts["near"],
        parameters_layer=(counts["far"] - counts["near"]) / deeper,
        parameters_row=(counts["wide"] - counts["near"]) / wider,
        embedding_row=_numbers(tensors["near"], "embedding") / (space.vocabularies[0] or 1),
        narrow=lambda depth: [each * count for count in range(depth + 1)],
        macs=macs["near"],
        macs_layer=(macs["far"] - macs["near"]) / deeper,
        macs_row=(macs["wide"] - macs["near"]) / wider,
        work=works["near"],
        work_layer=_differences(works["near"], works["far"], deeper),
        work_row=_differences(works["near"], works["wide"], wider),
    )


def _corners(problem: Problem, space: Space, core: Core) -> _Corners:
    first = space.depths[0]
    assert first is not None
    last = first + 1  # every further layer is like this one
    few, many = space.vocabularies[0], space.vocabularies[-1]
    if few is not None and many == few:
        many = few + 1  # what a row is worth has to be known of a single vocabulary too
    at = {"near": (first, few), "far": (last, few), "wide": (first, many)}
    length, places = problem.profile.student.buckets[-1], list(dict.fromkeys(at.values()))
    configs, tensors = {places[0]: core.config}, {places[0]: core.tensors}
    for place in places[1:]:
        own = {key: value for key, value in zip((DEPTH, VOCABULARY), place, strict=True) if value is not None}
        configs[place] = core.config.model_copy(update=own)
        tensors[place] = tuple(problem.family.tensors(configs[place]))
    macs = {place: problem.family.macs(config, length) for place, config in configs.items()}
    return _Corners(
        configs={name: configs[place] for name, place in at.items()},
        tensors={name: tensors[place] for name, place in at.items()},
        macs={name: macs[place] for name, place in at.items()},
        layers=last - first,
        rows=max((many or 0) - (few or 0), 1),
    )


def _tables(problem: Problem, space: Space, corners: _Corners, known: Known) -> tuple[Tables, ...]:
    """Bytes of each vocabulary beyond the least one, with the embedding as given and in 4 bits.

    They depend on the other layers' bits too: a Core ML package with 4-bit ones has no zero points.
    """
    if len(space.vocabularies) == 1:
        return tuple(((0.0,), (0.0,)) for _ in space.tables)
    first, near = space.vocabularies[0] or 0, corners.tensors["near"]

    def row(small: bool, layers: int) -> float:
        scheme = scheme_of(problem, near, space.low, small, layers)
        sizes = [_size(problem, corners.tensors[name], scheme, corners.configs[name]) for name in ("near", "wide")]
        return (sizes[1] - sizes[0]) / corners.rows

    def of(small: bool) -> Tables:
        grown = tuple(one.shape for one, other in zip(near, corners.tensors["wide"], strict=True) if one != other)
        plain = known.row((grown, small, 0), lambda: row(small, 0))
        mixed = known.row((grown, small, 1), lambda: row(small, 1))
        steps = [(vocabulary or 0) - first for vocabulary in space.vocabularies]
        return tuple(plain * step for step in steps), tuple(mixed * step for step in steps)

    return tuple(of(small) for small in space.tables)


def _size(problem: Problem, tensors: Sequence[StoredTensor], scheme: QuantScheme, config: Spec) -> float:
    return largest(problem.formats, tensors, scheme, problem.profile.student.buckets, config).total_mb * 1e6


def _numbers(tensors: Sequence[StoredTensor], kind: str = "") -> int:
    """How many numbers the tensors hold; of one kind, or of all."""
    return sum(prod(tensor.shape) for tensor in tensors if kind in ("", tensor.kind))


def _differences(work: Workload, other: Workload, steps: int) -> tuple[tuple[str, float], ...]:
    """By how much each countable part of the work grows with a step; those that do not are left out."""
    grown = [
        (name, (getattr(other, name) - value) / steps)
        for name, value in work
        if isinstance(value, int) and not isinstance(value, bool) and name != "file_bytes"
    ]
    return tuple((name, each) for name, each in grown if each)
