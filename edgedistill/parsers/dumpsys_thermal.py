"""`adb shell dumpsys thermalservice`: how throttled, and the temperatures that the hardware tells now."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, lines_of, number
from edgedistill.specs import Spec

# android.hardware.thermal TemperatureType
NO_TEMPERATURES = (6, 7, 8)  # voltage, current and charge of the battery: mV, mA and percent in the same form
TYPES = {0: "cpu", 1: "gpu", 2: "battery", 3: "skin", 4: "usb", 5: "power amplifier", 9: "npu"}
_TEMPERATURE = re.compile(
    rf"Temperature\{{mValue=({NUMBER}|NaN),\s*mType=(-?\d{{1,6}}),\s*mName=([^,}}]*),\s*mStatus=(\d+)\}}"
)


class Thermal(Spec):
    """`status` 0 (none) to 6 (shutdown), the worst that is told; temperatures in degrees Celsius by sensor name."""

    status: int
    temperatures_celsius: Mapping[str, float]
    kinds: Mapping[str, str]

    def hottest(self, *kinds: str) -> float | None:
        """The highest temperature of these kinds; None without one."""
        return max(
            (value for name, value in self.temperatures_celsius.items() if self.kinds[name] in kinds), default=None
        )


def parse(text: str) -> Thermal:
    """Current temperatures from the HAL where there are any; cached ones may be hours old and count only without.

    Raises:
        DataError: neither a status nor a temperature.
    """
    section, told, heads = "", None, list[str]()
    values: dict[str, dict[str, tuple[float, str, int]]] = {}
    lines = lines_of(text)
    for line in lines:
        if head := re.match(r"^\s*Thermal Status:\s*(\d)\s*$", line):
            told = int(head[1])
        elif re.match(r"^\s*[A-Z][\w ]+:\s*$", line):
            section = line.strip().lower()
            heads.append(section)
        elif (found := _TEMPERATURE.search(line)) and found[1] != "NaN" and int(found[2]) not in NO_TEMPERATURES:
            kind = TYPES.get(int(found[2]), "other")
            values.setdefault(section, {})[found[3]] = (number(found[1]), kind, min(6, int(found[4][:2])))
    current = next((v for k, v in values.items() if "current temperatures" in k), None)
    cached = next((v for k, v in values.items() if k.startswith("cached temperatures")), None)
    chosen = current or cached or next(iter(values.values()), {})
    if told is None and not chosen:
        raise DataError("neither a 'Thermal Status:' nor a 'Temperature{' line: not `dumpsys thermalservice`")
    # Cached ones are all there is where the HAL is not ready, or tells none and goes on with something else.
    final = "current temperatures" in section or not any("current temperatures" in head for head in heads)
    if cached and not current and final and not re.search(r"HAL Ready:\s*false\b", text):
        raise DataError("only temperatures of an earlier time: the dump was cut off before the current ones")
    # The service's own status counts; where only sensors are told, the worst of theirs.
    status = told if told is not None else max((item[2] for item in chosen.values()), default=0)
    if status > 6:
        raise DataError(f"Thermal Status: {status} is above 6, which Android does not have")
    return Thermal(
        status=status,
        temperatures_celsius={name: item[0] for name, item in chosen.items()},
        kinds={name: item[1] for name, item in chosen.items()},
    )
