"""What stored tensors take on a grid, and which of them get the narrow one within a budget of bytes. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, prod

from edgedistill.errors import SpecError
from edgedistill.specs.quant import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import StoredTensor

WIDE, NARROW = WeightGrid(), WeightGrid(bits=4, granularity=PerGroup())


def stored_bytes(shape: tuple[int, ...], grid: WeightGrid) -> int:
    """Bytes of a tensor on its grid: packed codes, and scales in float32."""
    groups = shape[1] // grid.granularity.size if isinstance(grid.granularity, PerGroup) else 1
    return -(-prod(shape) * grid.bits // 8) + 4 * shape[0] * groups


def narrowable(
    tensors: Sequence[StoredTensor], scheme: QuantScheme, narrow: WeightGrid = NARROW
) -> dict[str, WeightGrid]:
    """The grid that each tensor would get from `narrow` (a kernel has no groups), if it fits and is not its own yet.

    Groups fit a width that they divide, and nothing in a static_int8 student, whose `layers` have one scale a channel.
    """
    found = {}
    for tensor in tensors:
        own = tensor.grid(scheme)
        grid = tensor.grid(scheme.model_copy(update={"layers": {tensor.name: narrow}}))
        if own is None or grid is None or own == grid:
            continue
        size = grid.granularity.size if isinstance(grid.granularity, PerGroup) else None
        if size is None or (scheme.activations != "static_int8" and tensor.shape[1] % size == 0):
            found[tensor.name] = grid
    return found


def sizes_of(
    tensors: Sequence[StoredTensor], scheme: QuantScheme, narrow: WeightGrid = NARROW
) -> dict[str, tuple[int, int]]:
    """Bytes of each tensor that can be narrowed: as in `scheme`, and on `narrow`; codes packed, scales float32."""
    grids = narrowable(tensors, scheme, narrow)
    sizes = {}
    for tensor in tensors:
        own = tensor.grid(scheme)
        if own is not None and tensor.name in grids:
            sizes[tensor.name] = stored_bytes(tensor.shape, own), stored_bytes(tensor.shape, grids[tensor.name])
    return sizes


def allocate(
    sensitivities: Mapping[str, float],
    sizes: Mapping[str, tuple[int, int]],
    budget_bytes: int,
    wide: WeightGrid = WIDE,
    narrow: WeightGrid = NARROW,
) -> dict[str, WeightGrid]:
    """`wide` or `narrow` for each tensor, so that together they take at most `budget_bytes`; for `QuantScheme.layers`.

    `sensitivities` are increases of the KL when a tensor is narrow (one below 0 is noise and counts as 0), `sizes` its
    bytes (wide, narrow). Tensors are narrowed in the order of KL increase per byte saved until the budget holds; then
    those that turn out not to be needed are made wide again, the most sensitive first.

    The sum of increases is at most that of the last tensor narrowed above the least possible: up to that tensor it is
    the optimum of the relaxed problem, in which a part of a tensor can be narrow, and that is no larger than the real
    one (Dantzig 1957). It is the least where all tensors save the same bytes.

    Raises:
        SpecError: the names differ, an increase is not finite, or nothing fits the budget (the message has what would).
    """
    if sensitivities.keys() != sizes.keys():
        odd = ", ".join(sorted(sensitivities.keys() ^ sizes.keys())[:3])
        raise SpecError(f"sensitivities and sizes are of different tensors: {odd} is only in one of them.")
    if odd := ", ".join(name for name, value in sensitivities.items() if not isfinite(value)):
        raise SpecError(f"the sensitivity of {odd} is not a finite number: measure it again.")
    smallest = sum(min(pair) for pair in sizes.values())
    if smallest > budget_bytes:
        raise SpecError(
            f"a budget of {budget_bytes} bytes cannot be met: with every tensor that gains by it in {narrow.label} the "
            f"weights take {smallest} bytes. Raise the budget to that or more, or take a smaller student."
        )
    cost = {name: max(0.0, value) for name, value in sensitivities.items()}
    saved = {name: large - small for name, (large, small) in sizes.items() if large > small}
    taken = sum(large for large, _ in sizes.values())
    chosen = []
    for name in sorted(saved, key=lambda name: (cost[name] / saved[name], -saved[name], name)):
        if taken <= budget_bytes:
            break
        chosen.append(name)
        taken -= saved[name]
    for name in sorted(chosen, key=lambda name: (-cost[name], name)):
        if taken + saved[name] <= budget_bytes:
            chosen.remove(name)
            taken += saved[name]
    return {name: narrow if name in chosen else wide for name in sizes}
