"""Power rails of Android phones as Perfetto records them for the shell user, who may not read the files."""

from __future__ import annotations

from edgedistill.errors import DataError
from edgedistill.runners._meters import Readings, Track

NAME, RANK, BATTERY = "Perfetto, power rails", 15, False
COVERS = "the sum of the rails that the phone meters"
FILES: tuple[str, ...] = ()
ONCE: tuple[str, ...] = ()
COMMAND: tuple[str, ...] = ()
STREAM: tuple[str, ...] = ()
POLL_MS = 0
STEP_MJ = 0.001


def track(readings: Readings) -> Track | None:
    """The rails of the trace that was recorded around the launch, at the times that the phone read them."""
    if readings.trace is None or not readings.trace.rails:
        return None
    rails = {name: dict(series) for name, series in readings.trace.rails.items()}
    times = sorted(set.intersection(*(set(series) for series in rails.values())))
    if len(times) < 2:
        raise DataError("Perfetto read the power rails less than twice: measure longer, e.g. --sustained 60")
    whole = {name: tuple(series[time_s] / 1e3 for time_s in times) for name, series in rails.items()}
    moments = tuple(time_s - readings.boot_offset_s for time_s in times)
    return Track(moments, whole, tuple(sorted(whole)), cumulative=True, step=STEP_MJ * len(whole))
