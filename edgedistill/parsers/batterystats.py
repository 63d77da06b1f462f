"""`dumpsys batterystats`, for people or with `--checkin`: modelled charge of each app, in mAh. Too coarse for a single
model; read for context.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, lines_of, number
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
    """A check-in dump, or lines of one; or the estimate of a dump for people.

    Raises:
        DataError: no line of it is one.
    """
    version, capacity, used, on_battery = "", None, None, None
    apps: dict[int, float] = {}
    packages: dict[int, list[str]] = {}
    steps = known = 0
    lines = lines_of(text)
    head = next((n for n, line in enumerate(lines) if "Estimated power use (mAh):" in line), None)
    if head is not None:
        return _for_people(lines, head)
    for line in lines:
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


_APP = re.compile(rf"^\s*U(?:id|ID) (?:u(\d{{1,4}})a(\d{{1,5}})|(\d{{1,9}})): ({NUMBER})\b")
_SPAN = re.compile(r"(\d{1,9})(d|h|m|s|ms)\b")
MILLISECONDS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
FIRST_APP, USER = 10_000, 100_000  # android.os.Process.FIRST_APPLICATION_UID, UserHandle.PER_USER_RANGE


def _for_people(lines: list[str], head: int) -> BatteryStats:
    """The first estimate, which is that since the last charge; it ends with the first line that is no part of it."""
    summary = re.match(rf"^\s*Capacity: ({NUMBER}), Computed drain: ({NUMBER}),", lines[head + 1]) if (
        head + 1 < len(lines)) else None  # fmt: skip
    if not summary:
        raise DataError("'Estimated power use' without 'Capacity: …, Computed drain: …': it was cut off")
    apps: dict[int, float] = {}
    for line in lines[head + 2 :]:
        if not line.strip():
            break
        if found := _APP.match(line):
            uid = int(found[3]) if found[3] else int(found[1]) * USER + FIRST_APP + int(found[2])
            apps.setdefault(uid, number(found[4], "charge"))
    span = next((line for line in lines[:head] if re.match(r"^\s*Time on battery: ", line)), "")
    parts = _SPAN.findall(span.partition("(")[0])
    return BatteryStats(
        version="",
        capacity_mah=number(summary[1], "capacity"),
        used_mah=number(summary[2], "used"),
        on_battery_ms=float(sum(int(value) * MILLISECONDS[unit] for value, unit in parts)) if parts else None,
        apps_mah=apps,
        packages={},
        steps=0,
    )
