"""A core's bytes, numbers and work, and what a layer or a row of the vocabulary adds: differences of full costs."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from edgedistill.plan.cost import inference
from edgedistill.plan.predict import Workload
from edgedistill.plan.problem import Problem
from edgedistill.plan.size import largest
from edgedistill.plan.space import Core, Space, config_of, scheme_of
from edgedistill.specs import QuantScheme, Spec
from edgedistill.students import StoredTensor


class Parts(NamedTuple):
    """Bytes and numbers of a core at its least depth and vocabulary, and what each step adds."""

    size: float
    size_layer: float
    saved_layer: float  # by storing one layer in 4 bits
    # what it saves beyond that if no layer is left as it was, by itself and for each layer: zero points that only such
    # layers have, and the list of exceptions that some formats write
    saved_all: tuple[float, float]
    rows: tuple[tuple[float, ...], tuple[float, ...]]  # for the embedding as given and small: bytes of each vocabulary
    parameters: float
    parameters_layer: float
    parameters_row: float
    embedding_row: float
    layer_weights: float
    macs: float
    macs_layer: float
    work: Workload
    macs_row: float
    work_layer: tuple[tuple[str, float], ...]
    work_row: tuple[tuple[str, float], ...]


class _Corners(NamedTuple):
    """A core at its least depth and vocabulary, one deeper, one with more rows; and by how many layers and rows."""

    configs: dict[str, Spec]
    tensors: dict[str, list[StoredTensor]]
    macs: dict[str, int]
    layers: int
    rows: int


def parts_of(problem: Problem, space: Space, core: Core, where: str) -> Parts:
    """Full sizes and costs at the corners of a core, and their differences."""
    corners, buckets, plain = _corners(problem, space, core, where), problem.profile.student.buckets, problem.scheme
    configs, tensors, macs, deeper, wider = corners
    deep = space.depths[0] is not None
    size = _size(problem, tensors["near"], plain)
    layer = (_size(problem, tensors["far"], plain) - size) / deeper if deep else 0.0
    saved_layer, saved_all = _saved(problem, space, corners, size, layer)
    works = {name: inference(problem.family, config, plain, buckets, round(size)) for name, config in configs.items()}
    counts = {name: _numbers(found) for name, found in tensors.items()}
    weights = {name: _numbers(found, "linear") + _numbers(found, "convolution") for name, found in tensors.items()}
    return Parts(
        size=size,
        size_layer=layer,
        saved_layer=saved_layer,
        saved_all=saved_all,
        rows=_tables(problem, space, corners, size),
        parameters=counts["near"],
        parameters_layer=(counts["far"] - counts["near"]) / deeper,
        parameters_row=(counts["wide"] - counts["near"]) / wider,
        embedding_row=_numbers(tensors["near"], "embedding") / (space.vocabularies[0] or 1),
        layer_weights=(weights["far"] - weights["near"]) / deeper if deep else weights["near"],
        macs=macs["near"],
        macs_layer=(macs["far"] - macs["near"]) / deeper,
        macs_row=(macs["wide"] - macs["near"]) / wider,
        work=works["near"],
        work_layer=_differences(works["near"], works["far"], deeper),
        work_row=_differences(works["near"], works["wide"], wider),
    )


def _corners(problem: Problem, space: Space, core: Core, where: str) -> _Corners:
    first, last = space.depths[0], space.depths[-1]
    if first is not None and first == last:
        last = first + 1
    few, many = space.vocabularies[0], space.vocabularies[-1]
    at = {"near": (first, few), "far": (last, few), "wide": (first, many)}
    length, places = problem.profile.student.buckets[-1], list(dict.fromkeys(at.values()))
    configs = {place: config_of(problem, core.variants[0], *place, where) for place in places}
    tensors = {place: problem.family.tensors(config) for place, config in configs.items()}
    macs = {place: problem.family.macs(config, length) for place, config in configs.items()}
    return _Corners(
        configs={name: configs[place] for name, place in at.items()},
        tensors={name: tensors[place] for name, place in at.items()},
        macs={name: macs[place] for name, place in at.items()},
        layers=1 if first is None else (last or 0) - first,
        rows=max((many or 0) - (few or 0), 1),
    )


def _saved(
    problem: Problem, space: Space, corners: _Corners, size: float, layer: float
) -> tuple[float, tuple[float, float]]:
    """Bytes that one layer in 4 bits saves, and what all of them save beyond that; of a network without numbered
    layers, all of them together."""
    if space.low is None:
        return 0.0, (0.0, 0.0)

    def small(name: str, layers: int) -> float:
        tensors = corners.tensors[name]
        return _size(problem, tensors, scheme_of(problem, tensors, space.low, False, layers))

    every, first = 10**6, space.depths[0]
    near = size - small("near", every)
    if first is None:
        return near, (0.0, 0.0)
    far = size + corners.layers * layer
    one = far - small("far", 1)
    each = (far - small("far", every) - near) / corners.layers
    return one, (near - first * each, each - one)


def _tables(
    problem: Problem, space: Space, corners: _Corners, size: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Bytes of each vocabulary beyond the least one, with the embedding as given and in 4 bits."""
    first, found = space.vocabularies[0] or 0, []
    if len(space.vocabularies) == 1 and not any(tensor.kind == "embedding" for tensor in corners.tensors["near"]):
        return (0.0,), (0.0,)
    for scheme in (problem.scheme, scheme_of(problem, corners.tensors["near"], space.low, True, 0)):
        start, end = (_size(problem, corners.tensors[name], scheme) - size for name in ("near", "wide"))
        found.append(tuple(start + (end - start) * ((v or 0) - first) / corners.rows for v in space.vocabularies))
    return found[0], found[1]


def _size(problem: Problem, tensors: list[StoredTensor], scheme: QuantScheme) -> float:
    return largest(problem.formats, tensors, scheme, problem.profile.student.buckets).total_mb * 1e6


def _numbers(tensors: list[StoredTensor], kind: str = "") -> int:
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
