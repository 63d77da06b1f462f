"""Energy meters of devices: one file per meter, each saying what to read on the device and what the texts mean.

A meter file defines `NAME`, `COVERS` (which part of the device it sees), `RANK` (the lowest that tells something is
taken), what the measuring program is to read (`FILES`, `ONCE`, `COMMAND`, `STREAM`, `POLL_MS`), `BATTERY` (whether a
charger would make it tell nothing), and `track(readings)`. The program reads; everything is understood here.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Protocol

from edgedistill.parsers.perfetto import PowerTrace


@dataclass(frozen=True)
class Readings:
    """What the measuring program read: for each moment (seconds of the device's monotonic clock) the text of each file
    or command. `boot_offset_s` is what its clock of the time since boot is ahead. `trace` is what Perfetto recorded
    meanwhile, `battery_v` the battery's voltage then.
    """

    times_s: tuple[float, ...]
    texts: tuple[Mapping[str, str], ...]
    boot_offset_s: float = 0.0
    trace: PowerTrace | None = None
    battery_v: float | None = None


@dataclass(frozen=True)
class Track:
    """One meter over time. `rails` are mJ since some start where `cumulative`, else mW, one value per moment of
    `times_s`. The sum over `counted` is the device's; the other rails are parts of these. `step` is the meter's own
    smallest difference of that sum, in mJ or mW. `updates_min`: how often a slow gauge must have changed in a window.
    """

    times_s: tuple[float, ...]
    rails: Mapping[str, tuple[float, ...]]
    counted: tuple[str, ...]
    cumulative: bool
    step: float
    updates_min: int = 0


class Meter(Protocol):
    """What a meter file offers. `FILES` are globs under /sys; those of `ONCE` do not change and are read once.

    `POLL_MS` 0: it counts by itself and is read at the ends of a window only. A `COMMAND` is run for every reading, a
    `STREAM` goes on and prints line by line; both are used only where no other meter that is polled was found.
    """

    NAME: str
    COVERS: str
    RANK: int
    FILES: tuple[str, ...]
    ONCE: tuple[str, ...]
    COMMAND: tuple[str, ...]
    STREAM: tuple[str, ...]
    POLL_MS: int
    BATTERY: bool

    def track(self, readings: Readings) -> Track | None:
        """What it told; None when it is not there. Raises DataError when what it says cannot be used."""


@cache
def meters() -> tuple[Meter, ...]:
    """All meters, the most exact first."""
    found: list[Any] = [
        import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
        if not info.name.startswith("_")
    ]
    return tuple(sorted(found, key=lambda meter: meter.RANK))


def wanted() -> list[dict[str, Any]]:
    """What the program is to read, in order, as JSON values."""
    return [
        {
            "name": meter.NAME,
            "files": list(meter.FILES),
            "once": list(meter.ONCE),
            "command": list(meter.COMMAND),
            "stream": list(meter.STREAM),
            "poll_ms": meter.POLL_MS,
        }
        for meter in meters()
    ]
