"""The schemes that a plan allows, for every family and format; of them, a few in which every two choices meet.

A scheme is made of parts: the grid of the embeddings, of the layers, of the head, the kind of activations and the type
of scales. What a family does not have is no part of its schemes. A decoder's head may be its embeddings ("tied").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan.nearest import DTYPES, GRIDS, KINDS
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid

TIED = "tied"
TIES = ("llama",)  # families whose head may be the embeddings
Parts = Mapping[str, Any]


class Case(NamedTuple):
    """One file that can be planned."""

    family: str
    format_name: str
    scheme: QuantScheme
    tied: bool = False
    """Whether a decoder's head is its embeddings."""

    @property
    def label(self) -> str:
        """A short name for one scheme: "embeddings int4g, weights int8, head tied, float, bf16"."""
        parts = parts_of(self)
        named = (f"{part} {_short(value)}" for part, value in parts.items() if part not in ("activations", "scales"))
        return ", ".join([*named, parts["activations"], parts["scales"]])

    @property
    def changes(self) -> dict[str, Any]:
        """What of the family's smallest student it changes."""
        return {"tied": self.tied} if self.family in TIES else {}


def parts_of(case: Case) -> Parts:
    """The choices that make the case's scheme, as far as its family has what they are about."""
    scheme, kinds = case.scheme, kinds_of(case.family)
    found: dict[str, Any] = {"weights": scheme.weights}
    if "embedding" in kinds:
        found["embeddings"] = scheme.embeddings
    if "head" in kinds:
        found["head"] = TIED if case.tied else scheme.head
    return found | {"activations": scheme.activations, "scales": scheme.scale_dtype}


def kinds_of(family: str) -> set[str]:
    """The kinds of tensors that students of a family may have."""
    plugin = catalog.load_plugin("students", family)
    return {"head", *(tensor.kind for tensor in plugin.tensors(plugin.TINY))}


def allows(format_name: str, scheme: QuantScheme) -> bool:
    """Whether a plan takes the scheme for a format, as `plan.check.check` asks; `test_contract.py` compares them."""
    about = catalog.constants("exporters", format_name)
    return scheme.misfit(about["HOLDS"], about.get("EXCLUDES", ())) is None


def planned(family: str, format_name: str) -> list[Case]:
    """Every case that a plan allows, in a fixed order."""
    plugin, kinds = catalog.load_plugin("students", family), kinds_of(family)
    tables = GRIDS if "embedding" in kinds else GRIDS[:1]
    heads = (*GRIDS, TIED) if family in TIES else GRIDS
    found = []
    for weights, table, head, kind, dtype in itertools.product(GRIDS, tables, heads, KINDS, DTYPES):
        told = {"weights": weights, "embeddings": table, "head": table if head == TIED else head,
                "activations": kind, "scale_dtype": dtype}  # fmt: skip
        try:
            scheme = QuantScheme.decode({name: _plain(value) for name, value in told.items()}, "a scheme")
        except SpecError:  # groups with static activations
            continue
        if kind in getattr(plugin, "ACTIVATIONS", KINDS) and allows(format_name, scheme):
            found.append(Case(family, format_name, scheme, head == TIED))
    return found


def pairs(case: Case) -> set[Any]:
    """Every two choices that meet in a case."""
    return set(itertools.combinations(parts_of(case).items(), 2))


def covering(cases: Sequence[Case], given: Iterable[Case] = (), tries: int = 12) -> list[Case]:
    """Those that together have every pair of choices that occurs in `cases`; what `given` has is not asked for again.

    Greedy: the next is one that has the most new pairs; of these one whose graph was met before, which is converted
    already then (`shared_conversions.py`); of those any. The cheapest of some tries is taken.
    """
    bits = {pair: 1 << n for n, pair in enumerate(dict.fromkeys(pair for case in cases for pair in pairs(case)))}
    masks = [sum(bits[pair] for pair in pairs(case)) for case in cases]
    graphs = [_graph(case) for case in cases]
    rest, met = sum(bits.values()), {_graph(case) for case in given}
    for case in given:
        rest &= ~sum(bits[pair] for pair in pairs(case))
    found = []
    for seed in range(tries):
        order = np.random.default_rng(seed).permutation(len(cases)).tolist()
        missing, seen, chosen = rest, set(met), []
        while missing:
            best = max(order, key=lambda n: ((masks[n] & missing).bit_count(), graphs[n] in seen))
            missing &= ~masks[best]
            seen.add(graphs[best])
            chosen.append(best)
        found.append((len(chosen) + 4 * len(seen), sorted(chosen)))
    return [cases[n] for n in min(found)[1]]


def apart(case: Case, seed: int) -> QuantScheme:
    """The case's scheme with another grid for each tensor, drawn from those that the plan allows there."""
    plugin = catalog.load_plugin("students", case.family)
    config = plugin.TINY.model_copy(update=case.changes)
    random = np.random.default_rng(seed)
    layers: dict[str, WeightGrid] = {}
    for tensor in plugin.tensors(config):
        if tensor.kind != "float":
            every = [grid for grid in GRIDS if _fits(case, {**layers, tensor.name: grid})]
            layers[tensor.name] = every[random.integers(len(every))]
    return case.scheme.model_copy(update={"layers": layers})


def _fits(case: Case, layers: Mapping[str, WeightGrid]) -> bool:
    told = case.scheme.model_dump() | {"layers": {name: grid.model_dump() for name, grid in layers.items()}}
    try:
        return allows(case.format_name, QuantScheme.decode(told, "a scheme"))
    except SpecError:
        return False


def _graph(case: Case) -> str:
    """What of a scheme the graph of a file depends on. Each one of static activations is its own."""
    scheme = case.scheme
    if scheme.activations == "static_int8":
        return case.label
    return f"{scheme.weights.granularity.kind}, {scheme.embeddings.label}, {scheme.head.granularity.kind}, {case.tied}"


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, WeightGrid) else value


def _short(grid: Any) -> str:
    return grid if isinstance(grid, str) else f"int{grid.bits}{'g' * isinstance(grid.granularity, PerGroup)}"
