"""Every student of a space: the combinations of its axes, and the ways each may be stored."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from math import ceil
from typing import Any, NamedTuple

from edgedistill import catalog
from edgedistill.errors import SpecError, did_you_mean
from edgedistill.plan.costing import fill, unstorable
from edgedistill.plan.problem import Problem
from edgedistill.plan.size import graph_bytes
from edgedistill.specs import PerChannel, PerGroup, QuantScheme, Spec, StudentSpace, WeightGrid
from edgedistill.students import StoredTensor

DEPTH, VOCABULARY = "layers", "vocabulary"  # axes along which a student's numbers grow by equal steps
CHANNELS = 8  # scaled widths are multiples of it (Tan and Le 2019, EfficientNet)
LAYER = re.compile(r"(?:layers|blocks)\.(\d+)\.")


class Core(NamedTuple):
    """All of a student but its depth, its vocabulary and its bits; `variants` cost the same, the first counts.

    `config` and `tensors` are those of the first variant's student of the least depth and vocabulary. `brought`: by
    format, bytes of the tensors that its graph has beside the weights. Where layers are unlike each other, there are
    `segments` instead, of which so many are `layers`. `as_given`: its rows cannot be cut into the groups of mixed
    precision, so it is stored as the profile says and in no other way.
    """

    variants: tuple[Mapping[str, Any], ...]
    config: Spec
    tensors: tuple[StoredTensor, ...]
    brought: tuple[int, ...]
    segments: tuple[Hashable, ...] = ()
    layers: int = 0
    as_given: bool = False


class Low(NamedTuple):
    """The 4-bit grid of mixed precision, the type of scales that every format stores it with, and whether the family
    has a table of embeddings, which is one more thing to store with it."""

    grid: WeightGrid
    scales: str
    tables: bool


class Space(NamedTuple):
    """The students to search; None: the family has no such axis, or precision is not mixed."""

    cores: tuple[Core, ...]
    depths: tuple[int | None, ...]
    vocabularies: tuple[int | None, ...]
    low: Low | None
    combinations: int
    invalid: int

    @property
    def tables(self) -> tuple[bool, ...]:
        """Whether a table of embeddings may be in 4 bits."""
        return (False, True) if self.low and self.low.tables else (False,)

    def stored(self, layers: int) -> int:
        """In how many ways so many layers can be stored: embeddings in 8 or 4 bits, any number of layers."""
        return len(self.tables) * (1 + layers) if self.low else 1

    def of(self, core: Core) -> Space:
        """The space as this core has it."""
        return self._replace(low=None) if core.as_given and self.low else self


def whole_space(family: str) -> StudentSpace | None:
    """All of a family, 4-bit layers included: what `--search` searches; None: the family names no axes."""
    axes = getattr(catalog.load_plugin("students", family), "SPACE", None)
    return None if axes is None else StudentSpace.decode({"axes": axes, "mixed_precision": True}, f"family {family!r}")


def space_of(problem: Problem, space: StudentSpace, where: str) -> Space:
    """Check the axes and form the cores; what cannot be a student is counted and left out.

    Raises:
        SpecError: for an unknown axis, or a space without any student.
    """
    axes: dict[str, Sequence[Any]] = dict(space.axes)
    _check_axes(problem, axes, where)
    depths: tuple[Any, ...] = tuple(sorted(axes.pop(DEPTH, (None,)), key=lambda v: v or 0))
    vocabularies: tuple[Any, ...] = tuple(sorted(axes.pop(VOCABULARY, (None,)), key=lambda v: v or 0))
    low = _low_grid(problem) if space.mixed_precision else None
    empty = Space((), depths, vocabularies, low, 0, 0)
    cores: dict[Any, Core] = {}
    misfits: dict[Any, list[str | None]] = {}
    stages: dict[Any, list[Any]] = {}
    combinations, valid, first_reason = 0, 0, ""
    for values in product(*axes.values()):
        try:
            given = _derived(dict(zip(axes, values, strict=True)), problem.family.Config.model_fields, stages)
            key, core = _core(problem, given, empty, misfits, where)
        except SpecError as error:
            first_reason = first_reason or str(error)
            combinations += _ways(empty)
            continue
        own = empty.of(core)
        each = own.stored(core.layers) if core.segments else _ways(own)
        combinations, valid = combinations + each, valid + each
        known = cores.get(key)
        cores[key] = core if known is None else known._replace(variants=(*known.variants, given))
    if not cores:
        raise SpecError(f"{where}: no combination of its axes is a student. The first is none because: {first_reason}")
    return empty._replace(cores=tuple(cores.values()), combinations=combinations, invalid=combinations - valid)


def _ways(space: Space) -> int:
    """How many students one core makes."""
    return sum(space.stored(depth or 0) for depth in space.depths) * len(space.vocabularies)


def config_of(problem: Problem, core: Mapping[str, Any], depth: int | None, vocabulary: int | None, where: str) -> Spec:
    """The configuration of one student.

    Raises:
        SpecError: it is none.
    """
    own = {DEPTH: depth, VOCABULARY: vocabulary}
    return fill(problem, {**core, **{key: value for key, value in own.items() if value is not None}}, where)


def scheme_of(
    problem: Problem, tensors: Sequence[StoredTensor], low: Low | None, small_embedding: bool, small_layers: int
) -> QuantScheme:
    """How a student is stored whose embedding, and so many of whose layers, have the 4-bit grid.

    The layers in the middle come first: those at either end are the usual sensitive ones. A rule of thumb; what a
    sensitivity pass measures is better.
    """
    scheme = problem.scheme
    if low is None or not (small_embedding or small_layers):
        return scheme
    changes: dict[str, Any] = {"embeddings": low.grid} if small_embedding else {}
    layers = {n for tensor in tensors if (n := layer_of(tensor)) is not None}
    chosen = set(layer_order(len(layers))[:small_layers])
    names = [tensor.name for tensor in tensors if layer_of(tensor) in chosen and layer_of(tensor) is not None]
    everything = [tensor.name for tensor in tensors if tensor.kind in ("linear", "convolution")]
    if len(names) == len(everything) and names:
        changes["weights"] = low.grid
    elif names:
        changes["layers"] = {**scheme.layers, **dict.fromkeys(names, low.grid)}
    return scheme.model_copy(update={**changes, "scale_dtype": low.scales})


@cache
def layer_order(layers: int) -> tuple[int, ...]:
    """The layers in the order in which they get 4 bits."""
    return tuple(sorted(range(layers), key=lambda n: (abs(2 * n - (layers - 1)), n)))


def layer_of(tensor: StoredTensor) -> int | None:
    """The layer that a quantized matrix or convolution belongs to; None: to none."""
    found = LAYER.match(tensor.name) if tensor.kind in ("linear", "convolution") else None
    return int(found[1]) if found else None


def _check_axes(problem: Problem, axes: Mapping[str, Sequence[Any]], where: str) -> None:
    fields = problem.family.Config.model_fields
    derived = {"head_width"} - set(fields) if "heads" in fields else set()
    derived |= {"ffn_ratio"} if "ffn" in fields else set()
    derived |= {"width_multiple", "depth_multiple"} if "stages" in fields else set()
    for name, values in axes.items():
        if name not in fields and name not in derived:
            raise SpecError(f"{where}: axis {name!r} is unknown{did_you_mean(name, {*fields, *derived})}")
        for value in values:
            if name in (DEPTH, VOCABULARY) and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise SpecError(f"{where}: {name} holds {value!r}; whole numbers from 1 are allowed.")
            if name in derived and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
                raise SpecError(f"{where}: {name} holds {value!r}; numbers above 0 are allowed.")


def _derived(given: dict[str, Any], fields: Collection[str], stages: dict[Any, list[Any]]) -> dict[str, Any]:
    """The configuration's own keys, from those that are told by others.

    `stages` keeps those that were scaled already, by what they were scaled from and how.
    """
    head = None if "head_width" in fields else given.pop("head_width", None)
    ratio, width = given.pop("ffn_ratio", None), given.get("width")
    if head is not None:
        if not isinstance(width, int) or width % head:
            raise SpecError(f"width = {width} is not a multiple of head_width = {head}")
        given["heads"] = int(width // head)
    if ratio is not None:
        if not isinstance(width, int) or width * ratio != int(width * ratio):
            raise SpecError(f"width x ffn_ratio = {width} x {ratio} is no whole number")
        given["ffn"] = int(width * ratio)
    wide, deep = given.pop("width_multiple", 1), given.pop("depth_multiple", 1)
    for key in ("stem_width", "head_width") if "stages" in given else ():
        given[key] = _channels(given[key], wide) if key in given else given[key]
    if "stages" in given:
        scaled = id(given["stages"]), wide, deep  # lists of the axis, which outlives this
        if scaled not in stages:
            stages[scaled] = [
                {**one, "width": _channels(one["width"], wide), "repeats": ceil(one["repeats"] * deep)}
                for one in given["stages"]
            ]
        given["stages"] = stages[scaled]
    return given


def _channels(width: int, multiple: float) -> int:
    return width if multiple == 1 else max(CHANNELS, round(width * multiple / CHANNELS) * CHANNELS)


def _core(
    problem: Problem, given: Mapping[str, Any], space: Space, misfits: dict[Any, list[str | None]], where: str
) -> tuple[Any, Core]:
    """One core, and what it has in common with others that cost the same.

    Raises:
        SpecError: if it is no student at either end.
    """
    first = config_of(problem, given, space.depths[0], space.vocabularies[0], where)
    same = space.depths[0] == space.depths[-1] and space.vocabularies[0] == space.vocabularies[-1]
    last = first if same else config_of(problem, given, space.depths[-1], space.vocabularies[-1], where)
    if hasattr(problem.family, "segments"):
        return _chain(problem, given, first, misfits, where)
    tensors = tuple(problem.family.tensors(first))
    shapes = tuple(tensor.shape for tensor in tensors)
    if shapes not in misfits:  # the names and kinds of a family's tensors do not differ between its cores
        ends = schemes_at_ends(problem, tensors, space.low)
        misfits[shapes] = [unstorable(problem, tensors, scheme) for scheme in ends]
    plain, *low = misfits[shapes]
    if plain:
        raise SpecError(f"{where}: {plain}")
    length = problem.profile.student.buckets[-1]
    # a second layer, as a student of one is not like the others
    more = first if space.depths[0] is None else first.model_copy(update={DEPTH: space.depths[0] + 1})
    buckets = problem.profile.student.buckets
    graphs = [graph_bytes(name, problem.scheme, tensors, buckets, more) for name in problem.formats]
    key = shapes, tuple(graphs), problem.family.macs(first, length), problem.family.macs(last, length)
    return key, Core((given,), first, tensors, tuple(brought for _, brought in graphs), as_given=any(low))


def _chain(
    problem: Problem, given: Mapping[str, Any], config: Spec, misfits: dict[Any, list[str | None]], where: str
) -> tuple[Any, Core]:
    """`_core` where layers are unlike each other: convolutions, of which 4-bit ones have no groups to misfit."""
    if "stages" in given:
        given["stages"][:] = vars(config)["stages"]  # of all cores with the same ones: they are checked once
    segments = problem.family.segments(config)
    for number, segment in enumerate(segments):
        if segment not in misfits:
            tensors = problem.family.segment_tensors(segment, number)
            misfits[segment] = [unstorable(problem, tensors, problem.scheme)]
        if misfits[segment][0]:
            raise SpecError(f"{where}: {misfits[segment][0]}")
    return segments, Core((given,), config, (), (), segments, len(segments) - 2)


def schemes_at_ends(problem: Problem, tensors: Sequence[StoredTensor], low: Low | None) -> Iterator[QuantScheme]:
    """The scheme as given and, with mixed precision, that of the fewest bits."""
    yield problem.scheme
    if low is not None:
        yield scheme_of(problem, tensors, low, True, len(tensors))


def _low_grid(problem: Problem) -> Low | None:
    """The best 4-bit grid that every format can store; None: they have none.

    Groups first: they cost less quality (bench/results/quant_rules.md).
    """
    for low in (WeightGrid(bits=4, granularity=PerGroup()), WeightGrid(bits=4, granularity=PerChannel())):
        scales = _scales_of(problem, low)
        if scales is not None:
            return Low(low, scales, VOCABULARY in problem.family.Config.model_fields)
    return None


def _scales_of(problem: Problem, low: WeightGrid) -> str | None:
    """The type of scales with which every format can store the grid beside the given scheme; None: with none."""
    scheme = problem.scheme
    if scheme.activations == "static_int8" and isinstance(low.granularity, PerGroup):
        return None
    for scales in dict.fromkeys((scheme.scale_dtype, "bf16")):
        mixed = scheme.model_copy(
            update={"embeddings": low, "layers": {**scheme.layers, "any": low}, "scale_dtype": scales}
        )
        about = [catalog.constants("exporters", name) for name in problem.formats]
        if all(mixed.misfit(one["HOLDS"], one.get("EXCLUDES", ())) is None for one in about):
            return scales
    return None
