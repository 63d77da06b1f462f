"""Energy per inference, from the counters that the measuring program read around its samples.

Power rails (Pixel) and packages (RAPL) meter in microjoules. A battery gauge counts charge in steps of about a
milliampere-hour: its figure is told only when several steps fit into the measurement, and never while it charges.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgedistill.errors import DataError
from edgedistill.parsers import odpm
from edgedistill.specs import Energy

RAIL_STEP_MJ, GAUGE_STEPS_MIN = 0.001, 5
GAUGE_FREE = ("Discharging", "Not charging")


def energy_of(answers: Sequence[Mapping[str, Any]], charging: bool | None) -> Energy:
    """The median over launches; `energy_mj` is None where nothing could be metered, and `note` says why."""
    counts = [len(answer["samples_ns"]) for answer in answers]
    rails = [_rails(answer["meters"]) for answer in answers]
    if rails and all(rails):
        each = [{name: mj / count for name, mj in seen.items()} for seen, count in zip(rails, counts, strict=True)]
        names = sorted(set.intersection(*(set(seen) for seen in each)))
        by_rail = {name: statistics.median(seen[name] for seen in each) for name in names}
        total = statistics.median(sum(seen.values()) for seen in each)
        kinds = (("package", "RAPL"), ("hwmon", "hwmon energy counters"))
        source = next((told for word, told in kinds if names[0].startswith(word)), "power rails (ODPM)")
        if total > 0:
            step = RAIL_STEP_MJ * len(names) / min(counts)
            return Energy(energy_mj=total, source=source, resolution_mj=step, rails_mj=by_rail)
        return Energy(energy_mj=None, source=source, note="the counters did not move during the measurement")
    if charging:
        return Energy(energy_mj=None, note="the battery is being charged: a cable feeds the device, use wireless adb")
    return _gauge(answers, counts)


def _rails(meters: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """Millijoules by rail of one launch; empty without rails, or when a counter ran backwards."""
    spent: dict[str, float] = {}
    before, after = meters["before"], meters["after"]
    for path in sorted(before.keys() & after.keys()):
        try:
            if path.endswith("/energy_value"):
                spent |= odpm.difference_mj(odpm.parse(before[path]), odpm.parse(after[path]))
            elif path.endswith("/energy_uj") and ":" in path and path.count(":") == 1:  # packages, not their parts
                used = int(after[path]) - int(before[path])
                if used < 0:  # wrapped; the launch is short, so it is left out rather than guessed
                    return {}
                spent[f"package {path.split('/')[-2]}"] = used / 1e3
            elif "/hwmon/" in path:  # microjoules, as the kernel's hwmon interface has it
                used = int(after[path]) - int(before[path])
                if used < 0:
                    return {}
                spent["/".join(path.split("/")[-2:])] = used / 1e3
        except (DataError, ValueError):
            return {}
    return spent


def _gauge(answers: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> Energy:
    """From the battery's charge counter (microampere-hours) and voltage (microvolts), if it moved enough."""
    used: list[float] = []
    for answer, count in zip(answers, counts, strict=True):
        before, after = answer["meters"]["before"], answer["meters"]["after"]
        folder = next((path.rsplit("/", 1)[0] for path in before if path.endswith("/charge_counter")), None)
        if folder is None:
            return Energy(energy_mj=None, note="no power meter that may be read")
        if after.get(f"{folder}/status", "Discharging").strip() not in GAUGE_FREE:
            return Energy(energy_mj=None, note="the battery is being charged")
        try:
            charge = int(before[f"{folder}/charge_counter"]) - int(after[f"{folder}/charge_counter"])
            volts = int(after[f"{folder}/voltage_now"]) / 1e6
        except (KeyError, ValueError):
            return Energy(energy_mj=None, note="the battery gauge could not be read")
        used.append(charge * 3.6e-3 * volts * 1e3 / count)
    source, step = "battery gauge", 1000 * 3.6e-3 * 3.85 * 1e3 / min(counts)  # steps of 1 mAh at a nominal voltage
    total = statistics.median(used)
    if total < GAUGE_STEPS_MIN * step:
        note = f"the gauge moved less than {GAUGE_STEPS_MIN} steps: measure longer, e.g. --sustained 600"
        return Energy(energy_mj=None, source=source, resolution_mj=step, note=note)
    return Energy(energy_mj=total, source=source, resolution_mj=step)
