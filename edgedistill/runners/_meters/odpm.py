"""Power rails of Pixel phones (On-Device Power Rails Monitor). The files belong to root; Perfetto reads for others."""

from __future__ import annotations

import itertools

from edgedistill.errors import DataError
from edgedistill.parsers import odpm
from edgedistill.runners._meters import Readings, Track

NAME, COVERS, RANK, BATTERY = "power rails (ODPM)", "the sum of the rails that the phone meters", 10, False
FILES = ("bus/iio/devices/iio:device*/energy_value",)
ONCE: tuple[str, ...] = ()
COMMAND: tuple[str, ...] = ()
STREAM: tuple[str, ...] = ()
POLL_MS = 0
STEP_MJ = 0.001  # counters are whole microjoules


def track(readings: Readings) -> Track | None:
    """Rails by name, over both chips; each reading says itself when it was taken.

    Raises:
        DataError: a counter ran backwards, or a chip's reading is damaged.
    """
    paths = sorted({path for text in readings.texts for path in text if path.endswith("/energy_value")})
    times: list[float] = []
    rails: dict[str, list[float]] = {}
    for time_s, text in zip(readings.times_s, readings.texts, strict=True):
        if not all(path in text for path in paths) or not paths:
            continue
        seen = [odpm.parse(text[path]) for path in paths]
        told_s = min(one.time_ms for one in seen) / 1e3 - readings.boot_offset_s
        times.append(told_s if abs(told_s - time_s) < 1.0 else time_s)  # else its clock is another one
        for one in seen:
            for name, uj in one.energy_uj.items():
                rails.setdefault(name, []).append(uj / 1e3)
    whole = {name: tuple(values) for name, values in rails.items() if len(values) == len(times)}
    if not whole:
        return None
    if any(later < earlier for values in whole.values() for earlier, later in itertools.pairwise(values)):
        raise DataError("the rails' counters ran backwards: the device restarted")
    return Track(tuple(times), whole, tuple(sorted(whole)), cumulative=True, step=STEP_MJ * len(whole))
