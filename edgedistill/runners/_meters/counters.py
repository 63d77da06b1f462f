"""Energy counters of the Linux kernel: domains of x86 processors (RAPL) and chips with `energy*_input` (hwmon).

Domains overlap: the platform (psys) holds the packages, a package its cores and its graphics, and not the memory; one
package may be there twice, by register and by MMIO. (powercap.rst of Linux; Intel SDM 16.10.)
"""

from __future__ import annotations

import re

from edgedistill.errors import DataError
from edgedistill.runners._meters import Readings, Track

NAME, COVERS, RANK, BATTERY = "energy counters of the kernel", "what the processor meters", 20, False
FILES = ("class/powercap/*/energy_uj", "class/hwmon/hwmon*/energy*_input")
ONCE = ("class/powercap/*/name", "class/hwmon/hwmon*/energy*_label")
COMMAND: tuple[str, ...] = ()
STREAM: tuple[str, ...] = ()
POLL_MS = 0
STEP_MJ = 0.061  # RAPL counts in 1/2^14 J (Intel SDM vol. 3B, 16.10.1: the usual energy unit)


def track(readings: Readings) -> Track | None:
    """Domains by name; what is counted covers nothing twice.

    Raises:
        DataError: a counter wrapped around, could not be read every time, or holds no number.
    """
    rails: dict[str, list[float]] = {}
    first = readings.texts[0] if readings.texts else {}
    for path in sorted(first):
        name = _name(path, first.get(re.sub(r"energy_uj$", "name", path).replace("_input", "_label"), "").strip())
        if not name or name in rails:  # the same package by the other way
            continue
        values = [text.get(path, "").strip() for text in readings.texts]
        if not all(re.fullmatch(r"\d{1,19}", value) for value in values):
            raise DataError(f"{path}: no count of microjoules every time")
        rails[name] = [int(value) / 1e3 for value in values]
    if not rails:
        return None
    for name, spent in rails.items():
        if sorted(spent) != spent:
            raise DataError(f"the energy counter of {name} wrapped around in the measurement")
    whole = {name: tuple(values) for name, values in rails.items()}
    added = counted(tuple(whole))
    return Track(readings.times_s, whole, added, cumulative=True, step=STEP_MJ * len(added))


def counted(names: tuple[str, ...]) -> tuple[str, ...]:
    """The domains that add up to all that is metered, none of it twice."""
    if "psys" in names:
        return ("psys",)
    whole = tuple(name for name in names if re.match(r"package|dram|Esocket", name))
    return whole or names


def _name(path: str, told: str) -> str:
    """What a counter is called; empty for another file. Memory of several packages needs its package's number."""
    if found := re.search(r"/powercap/[\w-]+:(\d+)((?::\d+)?)/energy_uj$", path):
        plain = told or ("" if found[2] else f"package-{found[1]}")
        return f"{plain}-{found[1]}" if plain and found[2] else plain
    if found := re.search(r"/hwmon/(hwmon\d+)/(energy\d+)_input$", path):
        return told or f"{found[1]}/{found[2]}"
    return ""
