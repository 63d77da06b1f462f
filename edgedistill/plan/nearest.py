"""The scheme nearest to one that cannot be stored, among those that can: what a refusal advises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from edgedistill.errors import SpecError
from edgedistill.specs import PerChannel, PerGroup, QuantScheme, WeightGrid

GRIDS = tuple(WeightGrid(bits=bits, granularity=kind) for bits in (8, 4) for kind in (PerChannel(), PerGroup()))
KINDS = ("dynamic_int8", "static_int8", "float")
DTYPES = ("fp16", "bf16")
PARTS = ("weights", "embeddings", "head")
# How far a change takes from what was asked for: bits decide size and quality, the grid's grain only quality, and
# other activations are another network to a phone.
_BITS, _GRAIN, _KIND, _DTYPE = 4, 2, 6, 1
MIXED = "mixed"
"""The exception that stands for `export.mixed.narrow`."""


def nearest(scheme: QuantScheme, fits: Callable[[QuantScheme], bool], kinds: Sequence[str] = KINDS) -> str:
    """What to write in place of parts of `scheme`, as TOML, so that it `fits`; empty if nothing helps.

    `kinds` are what activations the student may have. Exceptions with one grid are changed together.
    """
    odd = tuple(dict.fromkeys(scheme.layers.values()))
    choices = sorted(product(GRIDS, GRIDS, GRIDS, *(GRIDS for _ in odd), KINDS, DTYPES),
                     key=lambda choice: _distance(scheme, odd, choice))  # fmt: skip
    for *grids, kind, dtype in choices:
        if kind not in kinds:
            continue
        moved = dict(zip(odd, grids[len(PARTS) :], strict=True))
        told = {**dict(zip(PARTS, grids, strict=False)), "activations": kind, "scale_dtype": dtype,
                "layers": {name: moved[grid] for name, grid in scheme.layers.items()}}  # fmt: skip
        try:
            found = QuantScheme.decode({key: _plain(value) for key, value in told.items()}, "")
        except SpecError:  # groups with static activations
            continue
        if fits(found):
            return ", ".join(_changes(scheme, found))
    return ""


def _distance(scheme: QuantScheme, odd: Sequence[WeightGrid], choice: Sequence[Any]) -> tuple[int, int]:
    """How far, and of two that are as far the one in the order of `KINDS`."""
    *grids, kind, dtype = choice
    asked = (scheme.weights, scheme.embeddings, scheme.head, *odd)
    far = sum(
        _BITS * (one.bits != other.bits) + _GRAIN * (one.granularity != other.granularity)
        for one, other in zip(asked, grids, strict=True)
    )
    return far + _KIND * (kind != scheme.activations) + _DTYPE * (dtype != scheme.scale_dtype), KINDS.index(kind)


def _plain(value: Any) -> Any:
    if isinstance(value, WeightGrid):
        return value.model_dump()
    return {name: grid.model_dump() for name, grid in value.items()} if isinstance(value, dict) else value


def _changes(asked: QuantScheme, found: QuantScheme) -> Iterator[str]:
    for part in PARTS:
        if getattr(found, part) != getattr(asked, part):
            yield f"{part} = {_toml(getattr(found, part))}"
    for name, grid in found.layers.items():
        if grid != asked.layers[name]:
            yield f"{'mixed.narrow' if name == MIXED else f'layers.{name!r}'} = {_toml(grid)}"
    for key in ("activations", "scale_dtype"):
        if getattr(found, key) != getattr(asked, key):
            yield f'{key} = "{getattr(found, key)}"'


def _toml(grid: WeightGrid) -> str:
    if isinstance(grid.granularity, PerChannel):
        return f"{{ bits = {grid.bits} }}"
    return f'{{ bits = {grid.bits}, granularity = {{ kind = "per_group", size = {grid.granularity.size} }} }}'
