"""NVIDIA's `tegrastats` on Jetson boards: memory, load, temperatures and power, one line per interval."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgedistill.errors import DataError
from edgedistill.parsers._text import lines_of, number
from edgedistill.specs import Spec

MEBI = 2**20 / 1e6
# `POM_5V_IN 900/943`, `VDD_IN 2532mW/2698mW`, `VDD_IN 5765mW`; memory ends in MB, loads in %
_POWER = re.compile(r"(?:^|\s)([A-Za-z]\w*) (-?\d{1,7})(?:(mW)?/(-?\d{1,7})(?:mW)?|mW)(?=\s|$)")
_RAM = re.compile(r"\bRAM (\d{1,7})/(\d{1,7})(MB|kB)\b")
_GPU = re.compile(r"\bGR3D(?:_FREQ)? (\d{1,3})%")
_TEMPERATURE = re.compile(r"\b(\w+)@(-?\d{1,3}(?:\.\d{1,4})?)C(?=\s|$)")
OFF_CELSIUS = -200.0  # a sensor of a part that is switched off tells -256


class TegraSample(Spec):
    """One line. `power_mw` is of that moment, by rail; `average_mw` since tegrastats was started. A core that is off
    has no load (None); rails that are not connected (`NC`) are left out. `time` is as it stands there, empty in older
    versions.
    """

    time: str
    ram_used_mb: float
    ram_total_mb: float
    cpu_percent: tuple[float | None, ...]
    gpu_percent: float | None
    temperatures_celsius: Mapping[str, float]
    power_mw: Mapping[str, float]
    average_mw: Mapping[str, float]


def parse(text: str) -> tuple[TegraSample, ...]:
    """Every line, in order; a last line without its end is refused, as its last figure may have lost digits.

    Raises:
        DataError: no line, or one that was cut off.
    """
    found = [parse_line(line) for line in lines_of(text) if _RAM.search(line)]
    if not found:
        raise DataError("no line like 'RAM 613/3964MB … CPU […] …': not `tegrastats`")
    if len(found) > 1 and not text.endswith("\n") and found[-1].power_mw.keys() < found[0].power_mw.keys():
        raise DataError("the last line of tegrastats was cut off")
    return tuple(found)


def parse_line(line: str) -> TegraSample:
    """One line of it.

    Raises:
        DataError: it is none, or was cut off.
    """
    ram = _RAM.search(line)
    cores = re.search(r"\bCPU \[([^\]]*)\]", line, re.I)
    if not ram or not cores:
        raise DataError(f"{line.strip()[:100]!r} is no line of tegrastats, or was cut off")
    unit = MEBI if ram[3] == "MB" else MEBI / 1024
    gpu = _GPU.search(line)
    rails = {name: (now, average) for name, now, _, average in _POWER.findall(line) if name != "NC"}
    sensors = {name: number(value) for name, value in _TEMPERATURE.findall(line)}
    return TegraSample(
        time=line[: ram.start()].strip(),
        ram_used_mb=int(ram[1]) * unit,
        ram_total_mb=int(ram[2]) * unit,
        cpu_percent=tuple(_load(core) for core in cores[1].split(",")),
        gpu_percent=float(gpu[1]) if gpu else None,
        temperatures_celsius={name: value for name, value in sensors.items() if value > OFF_CELSIUS},
        power_mw={name: float(now) for name, (now, _) in rails.items()},
        average_mw={name: float(average) for name, (_, average) in rails.items() if average},
    )


def _load(core: str) -> float | None:
    found = re.fullmatch(r"\s*(\d{1,3})%(?:@\d{1,5})?\s*", core)
    if not found and core.strip().lower() != "off":
        raise DataError(f"{core.strip()[:40]!r} is no load of a core: the line was cut off")
    return float(found[1]) if found else None
