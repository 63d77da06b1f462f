"""`vcgencmd pmic_read_adc` of a Raspberry Pi 5: current and voltage of each rail of its power management chip."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, lines_of, number
from edgedistill.specs import Spec

_LINE = re.compile(rf"^\s*(\w+)_([AV])\s+(current|volt)\(\d{{1,3}}\)=({NUMBER})([AV])\s*$")


class Pmic(Spec):
    """One reading, by rail: amperes and volts. The supply (`EXT5V`) and the clock's battery have no current."""

    amperes: Mapping[str, float]
    volts: Mapping[str, float]

    @property
    def power_mw(self) -> dict[str, float]:
        """Power of the rails that tell both."""
        return {name: value * self.volts[name] * 1e3 for name, value in self.amperes.items()}


def parse(text: str) -> Pmic:
    """One reading. The numbers in brackets are the chip's own: a rail's two have nothing in common but its name.

    Raises:
        DataError: no rail, one that is told twice, or one without its voltage, as in an output that was cut off.
    """
    told: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    lines = lines_of(text)
    if any("error_msg" in line or "error=" in line for line in lines):
        raise DataError(f"vcgencmd failed: {lines[0].strip()[:100]!r}. Only a Raspberry Pi 5 has this chip")
    for line in lines:
        if not line.strip():
            continue
        found = _LINE.match(line)
        if not found or found[2] != found[5] or (found[3] == "current") != (found[2] == "A"):
            if re.search(r"\b(?:current|volt)\(", line) and not re.search(r"=-?nan[AV]", line):
                raise DataError(f"{line.strip()[:80]!r} is no rail, e.g. 'VDD_CORE_A current(7)=0.75012000A'")
            continue
        if found[1] in told[found[2]]:
            raise DataError(f"rail {found[1]} stands there twice: give one reading")
        told[found[2]][found[1]] = number(found[4], found[1])
    alone = sorted(told["A"].keys() - told["V"].keys())
    if alone or not told["A"]:
        why = f"rail {alone[0]} has a current and no voltage: it was cut off" if alone else "no rail with a current"
        raise DataError(f"{why}; the whole output of `vcgencmd pmic_read_adc` is needed")
    return Pmic(amperes=told["A"], volts=told["V"])
