"""`dumpsys batterystats --checkin`: modelled charge of each app, in mAh. Too coarse for one model; read for context."""

from __future__ import annotations

import csv
from collections.abc import Mapping

from edgedistill.errors import DataError
from edgedistill.parsers._text import lines_of, number
from edgedistill.specs import Spec


class BatteryStats(Spec):
    """`used_mah` is estimated since the last charge; capacities of the battery too. `apps_mah` by user id.

    `steps` counts the history's lines. None: not told.
    """

    version: str
    capacity_mah: float | None
    used_mah: float | None
    on_battery_ms: float | None
    apps_mah: Mapping[int, float]
    packages: Mapping[int, tuple[str, ...]]
    steps: int


def parse(text: str) -> BatteryStats:
    """A check-in dump, or lines of one.

    Raises:
        DataError: no line of it is one.
    """
    version, capacity, used, on_battery = "", None, None, None
    apps: dict[int, float] = {}
    packages: dict[int, list[str]] = {}
    steps = known = 0
    for line in lines_of(text):
        cells = next(csv.reader([line]), [])
        if len(cells) < 3 or not cells[0].strip().isdigit():
            continue
        known += 1
        kind = cells[3] if len(cells) > 3 else ""
        if cells[1] == "h":
            steps += 1
        elif kind == "vers" and len(cells) > 5:
            version = cells[5] if len(cells) == 6 else cells[6]
        elif kind == "uid" and len(cells) > 5 and cells[2] == "i" and cells[4].isdigit():
            packages.setdefault(int(cells[4]), []).append(cells[5])
        elif kind == "pws" and len(cells) > 5:
            capacity, used = number(cells[4], "capacity"), number(cells[5], "used")
        elif kind == "bt" and len(cells) > 5:
            on_battery = number(cells[5], "time on battery")
        elif kind == "pwi" and len(cells) > 5 and cells[4] == "uid" and cells[1].isdigit():
            apps[int(cells[1])] = number(cells[5], "charge")
    if not known:
        raise DataError("no line like '9,0,l,pws,…': not `dumpsys batterystats --checkin`")
    return BatteryStats(
        version=version,
        capacity_mah=capacity,
        used_mah=used,
        on_battery_ms=on_battery,
        apps_mah=apps,
        packages={uid: tuple(names) for uid, names in packages.items()},
        steps=steps,
    )
