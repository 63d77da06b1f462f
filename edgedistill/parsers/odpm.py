"""Power rails of Pixel phones (`/sys/bus/iio/devices/iio:device*/energy_value`): cumulative microjoules since boot."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgedistill.errors import DataError
from edgedistill.parsers._text import lines_of
from edgedistill.specs import Spec

_RAIL = re.compile(r"^(?:CH\d+)?(?:\(T=(\d+)\))?\[([^\]]+)\],\s*(\d+)\s*$")


class Rails(Spec):
    """One reading: the time in ms since boot, and the energy of each rail in microjoules since boot."""

    time_ms: int
    energy_uj: Mapping[str, int]


def parse(text: str) -> Rails:
    """One `energy_value` file.

    Raises:
        DataError: no rail, a rail named twice, or a line that is none.
    """
    time_ms, rails = None, {}
    for number, line in enumerate(lines_of(text), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if head := re.fullmatch(r"t=(\d{1,18})", stripped):
            time_ms = int(head[1]) if time_ms is None else time_ms  # of both chips' files in one
            continue
        found = _RAIL.match(stripped)
        if not found or len(found[3]) > 18:
            raise DataError(f"line {number}: {stripped[:60]!r} is no power rail, e.g. 'CH3(T=349894)[S2M_VDD], 302035'")
        if found[2] in rails:
            raise DataError(f"line {number}: rail {found[2]} stands there twice")
        rails[found[2]] = int(found[3])
        if time_ms is None and found[1]:
            time_ms = int(found[1][:18])
    if not rails or time_ms is None:
        raise DataError("no power rail with a time in it")
    return Rails(time_ms=time_ms, energy_uj=rails)


def difference_mj(before: Rails, after: Rails) -> dict[str, float]:
    """Energy of each rail between two readings, in millijoules; rails are matched by name, their order varies.

    Raises:
        DataError: a counter ran backwards (the device restarted), or the readings share no rail.
    """
    shared = sorted(before.energy_uj.keys() & after.energy_uj.keys())
    spent = {name: (after.energy_uj[name] - before.energy_uj[name]) / 1e3 for name in shared}
    if not spent or after.time_ms < before.time_ms or min(spent.values()) < 0:
        raise DataError("the rails' counters ran backwards between two readings: the device restarted")
    return spent
