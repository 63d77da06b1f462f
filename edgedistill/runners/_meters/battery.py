"""The battery's gauge: current and voltage, or the charge left. While a cable feeds the device it tells nothing.

Vendors differ in the sign of the current and some tell mA for uA; what cannot be told apart is not guessed.
"""

from __future__ import annotations

import re

from edgedistill.errors import DataError
from edgedistill.runners._meters import Readings, Track

NAME, COVERS, RANK, BATTERY = "battery gauge", "the whole device, screen and radio included", 60, True
FILES = tuple(f"class/power_supply/*/{name}" for name in ("charge_counter", "current_now", "voltage_now", "status"))
ONCE: tuple[str, ...] = ()
COMMAND: tuple[str, ...] = ()
STREAM: tuple[str, ...] = ()
POLL_MS = 200
FREE = ("Discharging", "Not charging")
UPDATES_MIN = 5  # a gauge renews its figures every 0.2 to 10 s; fewer say too little
MILLI_MAX, MICRO_MIN = 10_000, 20_000  # a device that computes draws more than 20 mA and less than 10 A
CHARGE_STEP_MAH = 1.0
NOMINAL_V = 3.85


def track(readings: Readings) -> Track | None:
    """Power from current and voltage; from the charge that is left where no current is told.

    Raises:
        DataError: it is being charged, or what it tells cannot be used.
    """
    folder = next(
        (path.rpartition("/")[0] for text in readings.texts[:1] for path in sorted(text)
         if path.endswith(("/current_now", "/charge_counter"))), None)  # fmt: skip
    if folder is None:
        return None
    told = {text.get(f"{folder}/status", FREE[0]).strip() for text in readings.texts}
    if not told <= set(FREE):
        raise DataError("the battery is being charged")
    volts = [value / 1e6 for value in _values(readings, f"{folder}/voltage_now")]
    if not all(2 < value < 30 for value in volts):
        raise DataError(f"the battery gauge tells {volts[0]:g} V")
    if f"{folder}/current_now" in readings.texts[0]:
        milliamperes = milli(_values(readings, f"{folder}/current_now"))
        power = tuple(ma * v for ma, v in zip(milliamperes, volts, strict=True))
        return Track(readings.times_s, {"battery": power}, ("battery",), False, max(volts), updates_min=UPDATES_MIN)
    left = _values(readings, f"{folder}/charge_counter")
    used = tuple((left[0] - now) / 1e3 * 3.6 * v * 1e3 for now, v in zip(left, volts, strict=True))  # uAh to mJ
    step = CHARGE_STEP_MAH * 3.6 * NOMINAL_V * 1e3
    return Track(readings.times_s, {"battery": used}, ("battery",), True, step, updates_min=UPDATES_MIN)


def milli(currents: list[float]) -> list[float]:
    """Milliamperes that flow out, of readings in uA (as the kernel wants it) or mA, of either sign.

    Raises:
        DataError: the unit or the direction cannot be told.
    """
    if min(currents) < 0 < max(currents):
        raise DataError("the battery's current changes its sign: a cable feeds the device now and then")
    sizes = [abs(value) for value in currents]
    largest = max(sizes)
    if largest == 0:
        raise DataError("the battery gauge tells no current")
    if MILLI_MAX < largest < MICRO_MIN:
        raise DataError(f"the battery gauge tells a current of {largest:g}: mA or uA cannot be told apart")
    return sizes if largest <= MILLI_MAX else [size / 1e3 for size in sizes]


def _values(readings: Readings, path: str) -> list[float]:
    values = [text.get(path, "").strip() for text in readings.texts]
    if not all(re.fullmatch(r"-?\d{1,12}", value) for value in values):
        raise DataError("the battery gauge could not be read")
    return [float(value) for value in values]
