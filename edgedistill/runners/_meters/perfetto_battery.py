"""The battery's counters of an Android phone as Perfetto records them, where it has no power rails."""

from __future__ import annotations

from edgedistill.errors import DataError
from edgedistill.runners._meters import Readings, Track
from edgedistill.runners._meters.battery import COVERS as COVERS
from edgedistill.runners._meters.battery import UPDATES_MIN, milli

NAME, RANK, BATTERY = "Perfetto, battery counters", 55, True
FILES: tuple[str, ...] = ()
ONCE: tuple[str, ...] = ()
COMMAND: tuple[str, ...] = ()
STREAM: tuple[str, ...] = ()
POLL_MS = 0


def track(readings: Readings) -> Track | None:
    """Power from current and voltage; the voltage that `dumpsys battery` told where the trace has none (Android 13).

    Raises:
        DataError: the voltage is not known, or the current cannot be used.
    """
    points = [point for point in readings.trace.battery if point.current_ua is not None] if readings.trace else []
    if not points:
        return None
    told = [point.voltage_uv / 1e6 if point.voltage_uv else readings.battery_v for point in points]
    volts = [value for value in told if value]
    if len(volts) < len(points):
        raise DataError("Perfetto tells the battery's current and nobody its voltage")
    milliamperes = milli([float(point.current_ua or 0) for point in points])
    power = tuple(ma * v for ma, v in zip(milliamperes, volts, strict=True))
    times = tuple(point.time_s - readings.boot_offset_s for point in points)
    return Track(times, {"battery": power}, ("battery",), False, max(volts), updates_min=UPDATES_MIN)
