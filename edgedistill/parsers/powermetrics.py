"""macOS `powermetrics`, as text or with `--format plist`: power of a Mac's processors over an interval, in mW. A Mac's
figure, never a phone's.
"""

from __future__ import annotations

import plistlib
import re
from collections.abc import Mapping
from typing import Any
from xml.parsers.expat import ExpatError

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, as_number, lines_of, number
from edgedistill.specs import Spec

_POWER = re.compile(rf"^\s*(.+?) Power(?: \([^)]*\))?:\s*({NUMBER})\s*(m?W)\s*$")

_INTEL = re.compile(rf"^\s*Intel energy model derived package power[^:]*:\s*({NUMBER})\s*(m?W)\s*$")


class PowerSample(Spec):
    """One interval; `power_mw` by unit (cpu, gpu, ane, combined)."""

    power_mw: Mapping[str, float]
    elapsed_ms: float | None = None
    thermal_pressure: str = ""


def parse(text: str) -> tuple[PowerSample, ...]:
    """Every sample, in order; what stands before the first `*** Sampled` line belongs to a sample that began earlier.

    Raises:
        DataError: no power in it.
    """
    if text.lstrip("\0 \r\n").startswith("<?xml"):
        return _from_plists(text)
    samples: list[dict[str, float]] = [{}]
    elapsed: list[float | None] = [None]
    pressures: list[str] = [""]
    for line in lines_of(text):
        if head := re.search(rf"\*\*\* Sampled .*\(({NUMBER})ms elapsed\)", line):
            samples.append({})
            elapsed.append(number(head[1]))
            pressures.append("")
        elif found := _INTEL.match(line):
            samples[-1].setdefault("combined", number(found[1]) * (1000.0 if found[2] == "W" else 1.0))
        elif found := _POWER.match(line):
            unit = {"package": "combined"}.get(found[1].lower(), found[1].lower())
            samples[-1].setdefault(unit, number(found[2]) * (1000.0 if found[3] == "W" else 1.0))
        elif pressure := re.match(r"^\s*Current pressure level:\s*(\w+)", line):
            pressures[-1] = pressure[1]
    told = [
        PowerSample(power_mw=power, elapsed_ms=span, thermal_pressure=level)
        for power, span, level in zip(samples, elapsed, pressures, strict=True)
        if power
    ]
    if not told:
        raise DataError("no line like 'CPU Power: 823 mW': not `powermetrics`")
    return tuple(told)


UNITS = {"cpu_power": "cpu", "gpu_power": "gpu", "ane_power": "ane", "dram_power": "dram", "combined_power": "combined"}


def _from_plists(text: str) -> tuple[PowerSample, ...]:
    """Property lists with a zero byte between them, one for each sample."""
    told = list[PowerSample]()
    for piece in text.split("\0"):
        if not piece.strip():
            continue
        try:
            value = plistlib.loads(piece.strip().encode())
        except (ExpatError, ValueError, TypeError, AttributeError, LookupError, RecursionError, OverflowError) as error:
            raise DataError(f"sample {len(told) + 1} is no whole property list: {str(error)[:80]}") from None
        processor = _part(value, "processor")
        power = {unit: as_number(processor[key], key) for key, unit in UNITS.items() if key in processor}
        if not power:
            raise DataError(f"sample {len(told) + 1} tells no power: it needs --samplers cpu_power,gpu_power")
        elapsed = value.get("elapsed_ns")
        told.append(PowerSample(
            power_mw=power,
            elapsed_ms=None if elapsed is None else as_number(elapsed, "elapsed_ns") / 1e6,
            thermal_pressure=str(value.get("thermal_pressure", "")),
        ))  # fmt: skip
    if not told:
        raise DataError("no sample: not `powermetrics`")
    return tuple(told)


def _part(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError("a property list that is no dictionary: not `powermetrics`")
    found = value.get(key)
    return found if isinstance(found, dict) else {}
