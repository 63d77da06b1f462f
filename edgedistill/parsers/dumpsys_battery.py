"""`adb shell dumpsys battery`: is it charging, how full, how warm. Only the first block counts; vendors append logs."""

from __future__ import annotations

import re

from edgedistill.errors import DataError
from edgedistill.parsers._text import lines_of, number
from edgedistill.specs import Spec

CHARGING, FULL = 2, 5  # android.os.BatteryManager.BATTERY_STATUS_*
STATUS_WORDS = {"unknown": 1, "charging": 2, "discharging": 3, "not charging": 4, "full": 5}


class Battery(Spec):
    """The battery's state. `status` is Android's: 2 charging, 3 discharging, 4 not charging, 5 full.

    `current_ma` is signed as the vendor has it; None where nothing is told. `present` is False on devices that have no
    battery. `overridden`: somebody set these values by hand (`dumpsys battery unplug`); they say nothing about cables.
    """

    powered_by: tuple[str, ...]
    status: int
    level_percent: float
    voltage_mv: float | None = None
    temperature_celsius: float | None = None
    charge_uah: float | None = None
    current_ma: float | None = None
    present: bool = True
    overridden: bool = False

    @property
    def charging(self) -> bool:
        """Whether energy may flow in: it is plugged, says that it charges, or what it says was set by hand. Then no
        energy can be told from it.
        """
        return bool(self.powered_by) or self.status in (CHARGING, FULL) or self.overridden


def parse(text: str) -> Battery:
    """The state block; a key that stands there twice counts once, first come.

    Raises:
        DataError: status or level is missing or impossible.
    """
    facts: dict[str, str] = {}
    powered, overridden = [], False
    for line in lines_of(text):
        overridden = overridden or "UPDATES STOPPED" in line
        found = re.match(r"^\s*([A-Za-z][\w ()./-]*?):\s*(\S.*?)\s*$", line)
        if line.strip().startswith("["):  # an event log begins
            break
        if not found:
            continue
        key, value = found[1].lower(), found[2]
        if key.endswith(" powered") and value.lower() == "true":
            powered.append(key.removesuffix(" powered").upper())
        facts.setdefault(key, value)
    missing = [key for key in ("status", "level") if key not in facts]
    if missing:
        raise DataError(f"no {missing[0]!r} line: this is not the output of `dumpsys battery`")
    word = facts["status"].lower()
    status = STATUS_WORDS.get(word) or int(_told(facts, "status", 1, 5) or 0)
    scale = _told(facts, "scale", 1, 1e6) or 100.0
    level = _told(facts, "level", 0, scale)
    if not status or level is None:
        raise DataError(f"status {facts['status'][:30]!r}, level {facts['level'][:30]!r}: not told by this device")
    temperature = _told(facts, "temperature", -1000, 2000)
    return Battery(
        powered_by=tuple(powered),
        status=status,
        level_percent=100 * level / scale,
        voltage_mv=_voltage(facts),
        temperature_celsius=None if temperature is None else temperature / 10,
        charge_uah=_told(facts, "charge counter", 1, 1e9),
        current_ma=_told(facts, "current now", -1e5, 1e5),
        present=facts.get("present", "true").lower() != "false",
        overridden=overridden,
    )


def _told(facts: dict[str, str], key: str, low: float, high: float) -> float | None:
    """A number within what is possible; None when the key is absent or the device says `unsupported` in its way."""
    try:
        value = number(facts[key], key) if key in facts else None
    except DataError:
        return None
    return value if value is not None and low <= value <= high else None


def _voltage(facts: dict[str, str]) -> float | None:
    """Millivolts; some old devices tell volts or microvolts."""
    value = _told(facts, "voltage", 1, 2e7)
    if value is None:
        return None
    return value * 1000 if value < 20 else value / 1000 if value > 1e5 else value
