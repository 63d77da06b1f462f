"""INA3221 power monitors of Jetson boards: voltage and current of up to three rails each, as their driver tells them.

JetPack 5 and later: hwmon, mV and mA. Earlier ones: NVIDIA's own driver under iio, mW. Rails and what feeds what:
NVIDIA's Jetson Linux Developer Guide, "Platform Power and Performance".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgedistill.errors import DataError
from edgedistill.runners._meters import Readings, Track

NAME, COVERS, RANK, BATTERY = "INA3221", "the rails that the board meters", 30, False
FILES = (
    "bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[123]_input",
    "bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr[123]_input",
    "bus/i2c/drivers/ina3221x/*/iio:device*/in_power[012]_input",
)
ONCE = (
    "bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[123]_label",
    "bus/i2c/drivers/ina3221/*/hwmon/hwmon*/shunt[123]_resistor",
    "bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_[012]",
)
COMMAND: tuple[str, ...] = ()
STREAM: tuple[str, ...] = ()
POLL_MS = 50
INPUTS = ("VDD_IN", "POM_5V_IN", "VIN")  # the module's whole input, of which all others are parts
# Rails that are fed from another one: counting both would count their energy twice.
FED_BY = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0", "VDDRQ": "SYS5V"}
SHUNT_STEP_UV, SHUNT_UOHM = 40.0, 5000.0  # TI's data sheet SBOS576: least significant bit; Jetson's usual resistor


def counted(names: tuple[str, ...]) -> tuple[str, ...]:
    """The rails that add up to the board without counting any energy twice."""
    inputs = [name for name in names if name in INPUTS]
    return tuple(inputs[:1]) or tuple(sorted(name for name in names if FED_BY.get(name) not in names))


def track(readings: Readings) -> Track | None:
    """Power of each labelled rail, in mW; channels that are not connected (`NC`, no label) are left out.

    Raises:
        DataError: a channel could not be read, or holds no number.
    """
    if not readings.texts:
        return None
    first = readings.texts[0]
    rails: dict[str, tuple[float, ...]] = {}
    step = 0.0
    steps: dict[str, float] = {}
    for path, label in sorted(first.items()):
        if found := re.search(r"/ina3221/.*/in([123])_label$", path):
            folder, channel, volts = path.rpartition("/")[0], found[1], f"in{found[1]}_input"
            if not _connected(label) or f"{folder}/{volts}" not in first:
                continue
            millivolts = _values(readings, f"{folder}/{volts}")
            milliamperes = _values(readings, f"{folder}/curr{channel}_input")
            rails[label.strip()] = tuple(mv * ma / 1e3 for mv, ma in zip(millivolts, milliamperes, strict=True))
            shunt = _shunt(first, f"{folder}/shunt{channel}_resistor")
            steps[label.strip()] = max(1.0, SHUNT_STEP_UV / shunt * 1e3) * max(millivolts) / 1e3
        elif (found := re.search(r"/ina3221x/.*/rail_name_([012])$", path)) and _connected(label):
            rails[label.strip()] = _values(readings, f"{path.rpartition('/')[0]}/in_power{found[1]}_input")
            steps[label.strip()] = SHUNT_STEP_UV / SHUNT_UOHM * 5e3
    if not rails:
        return None
    names = counted(tuple(rails))
    step = sum(steps[name] for name in names)
    return Track(readings.times_s, rails, names, cumulative=False, step=step)


def _connected(label: str) -> bool:
    return bool(label.strip()) and not re.fullmatch(r"NC\d*|sum of shunt voltages", label.strip())


def _shunt(first: Mapping[str, str], path: str) -> float:
    """Micro-ohms of a channel's resistor."""
    told = first.get(path, "").strip()
    return float(told) if re.fullmatch(r"[1-9]\d{0,8}", told) else SHUNT_UOHM


def _values(readings: Readings, path: str) -> tuple[float, ...]:
    values = [text.get(path, "").strip() for text in readings.texts]
    for value in values:
        if not re.fullmatch(r"-?\d{1,9}", value):
            raise DataError(f"{path}: {value[:40]!r} is no number: the rail could not be read every time")
    return tuple(float(value) for value in values)
