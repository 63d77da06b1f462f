"""NVIDIA's `tegrastats`, where the files of a Jetson's power monitors cannot be read: the same chips, in whole mW."""

from __future__ import annotations

from edgedistill.errors import DataError
from edgedistill.parsers import tegrastats
from edgedistill.runners._meters import Readings, Track
from edgedistill.runners._meters.ina3221 import counted

NAME, COVERS, RANK, BATTERY = "INA3221 (tegrastats)", "the rails that the board meters", 50, False
FILES: tuple[str, ...] = ()
ONCE: tuple[str, ...] = ()
COMMAND: tuple[str, ...] = ()
STREAM = ("tegrastats", "--interval", "100")
POLL_MS = 100
STEP_MW = 40.0  # 40 uV over the usual 5 milliohm, at 5 V


def track(readings: Readings) -> Track | None:
    """Power of each rail, in mW; the first value of `NAME a/b` is now, the second an average since the start.

    Raises:
        DataError: its lines tell no power, or not always of the same rails.
    """
    key = " ".join(STREAM)
    kept = [(time_s, text[key]) for time_s, text in zip(readings.times_s, readings.texts, strict=True) if key in text]
    if not kept:
        return None
    seen = [tegrastats.parse_line(line) for _, line in kept]
    names = tuple(sorted(seen[0].power_mw))
    if not names:
        raise DataError("tegrastats tells no power on this board")
    if any(tuple(sorted(one.power_mw)) != names for one in seen):
        raise DataError("tegrastats: not every line has the same rails")
    rails = {name: tuple(one.power_mw[name] for one in seen) for name in names}
    added = counted(names)
    return Track(tuple(time_s for time_s, _ in kept), rails, added, cumulative=False, step=STEP_MW * len(added))
