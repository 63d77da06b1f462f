"""Did the requested compute unit do the work? A silent fallback to another one is the usual reason for a slow phone."""

from __future__ import annotations

from collections.abc import Sequence

from edgedistill.errors import SpecError
from edgedistill.specs import Check, Measurement, Placement, Provenance, Verdict

NAMES = ("off_unit_time_share", "off_unit_operators_share")


def placement_lines(seen: Measurement | None, unit: str, share_max: float) -> tuple[Check, Check]:
    """The share of time and the share of operators that ran elsewhere than on `unit`; each may be `share_max` at most.

    Without an operator profile both are UNMEASURED.

    Raises:
        SpecError: the share is not between 0 and 1.
    """
    if not 0 <= share_max <= 1:
        raise SpecError(f"the share off the {unit} is between 0 and 1, not {share_max:g}; for example 0.05.")
    placed = seen.placement if seen else ()
    if seen is None or not placed:
        why = f"no operator profile says where the model ran; wanted on the {unit}"
        time, operators = (_line(name, None, share_max, None, why) for name in NAMES)
        return time, operators
    note = f"wanted on the {unit}; ran on " + ", ".join(
        f"{item.unit}: {item.operators} operators, {item.time_share:.1%} of the time" for item in placed
    )
    off = _off([item.time_share for item in placed], placed, unit)
    count = _off([float(item.operators) for item in placed], placed, unit)
    return _line(NAMES[0], off, share_max, seen.provenance, note), _line(
        NAMES[1], count, share_max, seen.provenance, note
    )


def _off(amounts: Sequence[float], placed: Sequence[Placement], unit: str) -> float:
    """The part of the amounts that is not the unit's; all of it when there is nothing at all."""
    off = sum(amount for amount, item in zip(amounts, placed, strict=True) if item.unit.lower() != unit.lower())
    return off / sum(amounts) if sum(amounts) else 1.0


def _line(name: str, share: float | None, share_max: float, source: Provenance | None, note: str) -> Check:
    verdict = Verdict.UNMEASURED
    if share is not None and source is Provenance.MEASURED:
        verdict = Verdict.PASS if share <= share_max else Verdict.FAIL
    elif source is not None:
        note = f"{source.value}, and only a measured placement counts; {note}"
    return Check(name=name, verdict=verdict, unit="", measured=share, limit=share_max, provenance=source, note=note)
