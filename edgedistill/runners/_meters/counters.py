"""Energy counters of the Linux kernel: packages of x86 processors (RAPL) and chips with `energy*_input` (hwmon)."""

from __future__ import annotations

import itertools
import re

from edgedistill.errors import DataError
from edgedistill.runners._meters import Readings, Track

NAME, COVERS, RANK, BATTERY = "energy counters of the kernel", "the metered packages", 20, False
FILES = ("class/powercap/*/energy_uj", "class/hwmon/hwmon*/energy*_input")
ONCE: tuple[str, ...] = ()
COMMAND: tuple[str, ...] = ()
STREAM: tuple[str, ...] = ()
POLL_MS = 0
STEP_MJ = 0.061  # RAPL counts in 1/2^14 J (Intel SDM vol. 3B, 16.10.1: the usual energy unit)


def track(readings: Readings) -> Track | None:
    """Packages by name: `intel-rapl:0` is one, `intel-rapl:0:0` a part of it.

    Raises:
        DataError: a counter wrapped around, or holds no number.
    """
    wanted = re.compile(r"/powercap/([\w-]+:\d+)/energy_uj$|/hwmon/(hwmon\d+)/(energy\d+)_input$")
    rails: dict[str, list[float]] = {}
    for text in readings.texts:
        for path, value in text.items():
            if found := wanted.search(path):
                if not re.fullmatch(r"\d{1,19}", value.strip()):
                    raise DataError(f"{path}: {value.strip()[:40]!r} is no count of microjoules")
                rails.setdefault("/".join(part for part in found.groups() if part), []).append(int(value) / 1e3)
    if not rails:
        return None
    if any(len(values) != len(readings.times_s) for values in rails.values()):
        raise DataError("an energy counter could not be read every time")
    if any(later < earlier for values in rails.values() for earlier, later in itertools.pairwise(values)):
        raise DataError("an energy counter wrapped around in the measurement")
    whole = {name: tuple(values) for name, values in rails.items()}
    return Track(readings.times_s, whole, tuple(sorted(whole)), cumulative=True, step=STEP_MJ * len(whole))
