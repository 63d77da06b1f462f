"""The schemes that a plan allows, for every family and format; of them, a few in which every two choices meet.

A scheme is made of parts: the bits and the granularity of the embeddings, of the layers and of the head, the kind of
activations and the type of scales. What a family does not have is no part of its schemes. A decoder's head may be its
embeddings ("tied").
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


INT8, INT4 = WeightGrid(), WeightGrid(bits=4)
INT8_GROUPS, INT4_GROUPS = WeightGrid(granularity=PerGroup()), WeightGrid(bits=4, granularity=PerGroup())
WEIGHTS = {"int8": INT8, "int4": INT4, "int8 groups": INT8_GROUPS, "int4 groups": INT4_GROUPS}
# What is run here, for its file is run by every export too: the other schemes are slow tests.
QUICK = ("int8, dynamic_int8", "int8, static_int8", "int4, float", "int4 groups, dynamic_int8, bf16 scales")


class Case(NamedTuple):
    """One file that can be planned."""

    family: str
    format_name: str
    scheme: QuantScheme
    tied: bool = False
    """Whether a decoder's head is its embeddings."""

    @property
    def label(self) -> str:
        """A short name for one scheme: "weights int8, embeddings int4g, head tied, float, bf16"."""
        scheme, kinds = self.scheme, kinds_of(self.family)
        tables = [f"embeddings {_short(scheme.embeddings)}"] * ("embedding" in kinds)
        head = TIED if self.tied else _short(scheme.head)
        return ", ".join(
            [f"weights {_short(scheme.weights)}", *tables, f"head {head}", scheme.activations, scheme.scale_dtype]
        )

    @property
    def changes(self) -> dict[str, Any]:
        """What of the family's smallest student it changes."""
        return {"tied": self.tied} if self.family in TIES else {}


def parts_of(case: Case) -> dict[str, Any]:
    """The choices that make the case's scheme, as far as its family has what they are about."""
    scheme, grids = case.scheme, {"weights": case.scheme.weights}
    if "embedding" in kinds_of(case.family):
        grids["embeddings"] = scheme.embeddings
    if not case.tied:
        grids["head"] = scheme.head
    bits = {f"bits of {part}": grid.bits for part, grid in grids.items()}
    grain = {f"granularity of {part}": grid.granularity.kind for part, grid in grids.items()}
    return {**bits, **grain, TIED: case.tied, "activations": scheme.activations, "scales": scheme.scale_dtype}


def kinds_of(family: str) -> set[str]:
    """The kinds of tensors that students of a family may have."""
    plugin = catalog.load_plugin("students", family)
    return {"head", *(tensor.kind for tensor in plugin.tensors(plugin.TINY))}


def allows(format_name: str, scheme: QuantScheme) -> bool:
    """Whether a plan takes the scheme for a format, as `plan.check.check` asks; `test_contract.py` compares them."""
    about = catalog.constants("exporters", format_name)
    return scheme.misfit(about["HOLDS"], about.get("EXCLUDES", ())) is None


def schemes() -> dict[str, QuantScheme]:
    """Every combination of a grid, a kind of activations and a type of scales."""
    kinds = ("dynamic_int8", "static_int8", "float")
    found = {}
    for (name, grid), kind, dtype in itertools.product(WEIGHTS.items(), kinds, ("fp16", "bf16")):
        if (dtype == "bf16" and name != "int4 groups") or ("groups" in name and kind == "static_int8"):
            continue
        label = f"{name}, {kind}{', bf16 scales' if dtype == 'bf16' else ''}"
        found[label] = QuantScheme(weights=grid, head=grid, activations=kind, scale_dtype=dtype)
    return found


def held() -> list[tuple[str, str, str]]:
    """(family, format, scheme) that the plan allows; a decoder's head is its embeddings."""
    found = []
    for family in catalog.plugins("students"):
        plugin = catalog.load_plugin("students", family)
        for name, scheme in schemes().items():
            stored = scheme.model_copy(update={"head": scheme.embeddings}) if family in TIES else scheme
            if scheme.activations in getattr(plugin, "ACTIVATIONS", (scheme.activations,)):
                found += [(family, f, name) for f in plugin.FORMATS if allows(f, scheme) and allows(f, stored)]
    return found


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


def covering(cases: Sequence[Case], given: Iterable[Case] = (), tries: int = 24) -> list[Case]:
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


def _short(grid: WeightGrid) -> str:
    return f"int{grid.bits}{'g' * isinstance(grid.granularity, PerGroup)}"


CASES = held()


def quick(family: str, format_name: str) -> list[Case]:
    """The cases of `test_contract.py` that are no slow tests."""
    names = [name for *pair, name in CASES if pair == [family, format_name] and name in QUICK]
    return [Case(family, format_name, schemes()[name], family in TIES) for name in names]
