"""The power management chip of the Raspberry Pi 5, asked with `vcgencmd pmic_read_adc`. Older ones cannot tell."""

from __future__ import annotations

from edgedistill.errors import DataError
from edgedistill.parsers import pmic
from edgedistill.runners._meters import Readings, Track

NAME, RANK, BATTERY = "PMIC (vcgencmd)", 40, False
COVERS = "the chip's output rails: neither its own losses nor what USB and 5 V pins draw"
FILES: tuple[str, ...] = ()
ONCE: tuple[str, ...] = ()
COMMAND = ("vcgencmd", "pmic_read_adc")
STREAM: tuple[str, ...] = ()
POLL_MS = 100  # a call takes some 10 ms of a core
CORE_STEP_A, OTHER_STEP_A = 0.00893, 0.000977  # the spacing of readings that were published


def track(readings: Readings) -> Track | None:
    """Power of each rail whose voltage and current are told, in mW.

    Raises:
        DataError: a reading was cut off.
    """
    key = " ".join(COMMAND)
    kept = [(time_s, text[key]) for time_s, text in zip(readings.times_s, readings.texts, strict=True) if key in text]
    if not kept:
        return None
    seen = [pmic.parse(text) for _, text in kept]
    names = tuple(sorted(seen[0].power_mw))
    if any(tuple(sorted(one.power_mw)) != names for one in seen):
        raise DataError(f"{key}: not every reading has the same rails")
    rails = {name: tuple(one.power_mw[name] for one in seen) for name in names}
    step = sum((CORE_STEP_A if name == "VDD_CORE" else OTHER_STEP_A) * seen[0].volts[name] * 1e3 for name in names)
    return Track(tuple(time_s for time_s, _ in kept), rails, names, cumulative=False, step=step)
