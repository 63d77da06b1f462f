"""Whether formats store a student exactly: asked of its scheme and its tensors, before anything slow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from types import ModuleType
from typing import Any

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan.nearest import KINDS, MIXED, nearest
from edgedistill.specs import PerChannel, QuantScheme, WeightGrid
from edgedistill.students import StoredTensor


def check_family(formats: Sequence[str], name: str, where: str) -> ModuleType:
    """Refuse a format that no student of the family has; returns the family, whose name was checked.

    Raises:
        SpecError: naming the formats that hold it.
    """
    family = catalog.load_plugin("students", name)
    for one in formats:
        if one not in family.FORMATS:
            raise SpecError(
                f"{where}: format {one!r} cannot hold the student family {name!r}. "
                f"It can be held by: {', '.join(family.FORMATS)}."
            )
    return family


def check_stored(
    formats: Sequence[str],
    family: ModuleType,
    scheme: QuantScheme,
    where: str,
    tensors: Sequence[StoredTensor] = (),
    done: str = "",
    others: Sequence[Sequence[StoredTensor]] = (),
) -> None:
    """Refuse a scheme that one of `formats` cannot store exactly.

    `tensors` are the student's, where it is known already. `done` is what to do with the nearest scheme, where the
    student is trained already. `others` are tensors of further students that the nearest scheme has to hold too.

    Raises:
        SpecError: with the reason, and the nearest scheme that all of the formats store.
    """
    kinds = getattr(family, "ACTIVATIONS", KINDS)
    every = [catalog.constants("exporters", name) for name in formats]
    wanted = list(product(every, (tensors, *others)))
    for name, about in zip(formats, every, strict=True):
        reason = misfit(about, scheme, tensors)
        if reason is None:
            continue
        reason = reason.replace(f"export.scheme.layers.{MIXED} =", "export.mixed.narrow =")
        advice = nearest(scheme, lambda found: all(misfit(one, found, some) is None for one, some in wanted), kinds)
        told = f" The nearest scheme that {' and '.join(formats)} can store has {advice}.{done}" if advice else (
            " No other scheme helps: take other sizes." if tensors or others else ""
        )  # fmt: skip
        raise SpecError(f"{where}: format {name!r} cannot store exactly {reason}.{told}")


def written(family: ModuleType, configs: Sequence[Mapping[str, Any]]) -> list[list[StoredTensor]]:
    """The tensors of students that are written out; of one that is none it is said elsewhere, with its place."""
    found = []
    for given in configs:
        with suppress(SpecError):
            found.append(family.tensors(family.Config.decode(given, "a student")))
    return found


def misfit(about: Mapping[str, Any], scheme: QuantScheme, tensors: Sequence[StoredTensor] = ()) -> str | None:
    """What a format, given by the literals of its module, cannot store exactly, and what it can; None: nothing."""
    holds, excludes = about["HOLDS"], about.get("EXCLUDES", ())
    reason = scheme.misfit(holds, excludes)
    tied = not any(tensor.kind == "head" for tensor in tensors)
    for tensor in tensors if reason is None else ():
        grid = tensor.grid(scheme)
        if grid is None or len(tensor.shape) != 2:
            continue
        if tied and tensor.kind == "embedding":
            reason = scheme.model_copy(update={"head": grid}).misfit(holds, excludes)
            if reason is not None:
                return f"a head that is {tensor.name}, stored as {grid.label}: {reason}"
        computed = tensor.kind == "embedding" or scheme.activations != "float"
        multiple, width = _multiple(about, grid, computed), tensor.shape[1]
        if width % multiple:
            return f"{tensor.name} as {grid.label}: it has rows of {width}, which have to be a multiple of {multiple}"
    return reason


def _multiple(about: Mapping[str, Any], grid: WeightGrid, computed: bool) -> int:
    """What the length of a matrix's rows has to be a multiple of; `computed`: its codes are, or are looked up."""
    own: int = about.get("ROW_MULTIPLE", 1)
    packed: int = about.get("INT4_ROW_MULTIPLE", 1) if grid.bits == 4 and computed else 1
    return max(own, packed, 1 if isinstance(grid.granularity, PerChannel) else grid.granularity.size)
