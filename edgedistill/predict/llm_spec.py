"""What specifications say of a device's rate with language models; the coefficients are `calibrate/llm_spec.py`'s."""

from __future__ import annotations

from collections.abc import Mapping
from math import log

from edgedistill.predict.devices import Device

MISSING = {
    ("decode", "cpu"): "memory_bandwidth_gb_per_s",
    ("decode", "gpu"): "memory_bandwidth_gb_per_s",
    ("decode", "npu"): "memory_bandwidth_gb_per_s",
    ("prefill", "cpu"): "cpu",
    ("prefill", "gpu"): "memory_bandwidth_gb_per_s",
    ("prefill", "npu"): "npu_int8_tops",
}


def spec_facts(device: Device, unit: str, phase: str, *, told: bool = False) -> dict[str, float]:
    """`pace`, the log of the rate that binds the phase, where it is stated; and what the chip is known to lack.

    With `told`, a bandwidth that is not stated is told from the cores.
    """
    found: dict[str, float] = {}
    bandwidth = device.bandwidth_gb_per_s or (device.bandwidth_told if told else None)
    rates = {"cpu": device.cpu_peak_gflops, "gpu": bandwidth, "npu": device.npu_tops}
    rate = bandwidth if phase == "decode" else rates[unit]
    if rate:
        found["pace"] = log(rate)
    if phase == "decode" and unit != "npu" and "google tensor" in device.soc:
        found["lacks:tensor"] = 1.0
    if phase == "prefill" and unit == "cpu" and device.cores:
        found["lacks:i8mm"] = float(not max(device.cores, key=lambda core: core.gflops).int8_matrices)
    return found


def spec_beyond(found: Mapping[str, float], unit: str, facts: Mapping[str, float]) -> float:
    """Log distance of a device's pace from those of the devices that were measured."""
    if "pace" not in facts or f"min:{unit}" not in found:
        return 0.0
    return max(facts["pace"] - found[f"max:{unit}"], found[f"min:{unit}"] - facts["pace"], 0.0)


def spec_log_s(found: Mapping[str, float], unit: str, kernel: str, facts: Mapping[str, float]) -> float:
    """Log seconds for 10^9 parameters; a kind of kernel that no row of the unit has is taken as the unit's middle."""
    total = found["one"] + found.get(f"unit:{unit}", 0.0) + found.get(f"{unit}|{kernel}", 0.0)
    mean = found.get(f"mean:{unit}", 0.0)
    total += found.get(f"pace:{unit}", -1.0) * (facts.get("pace", mean) - mean)
    return total + sum(found.get(name, 0.0) * value for name, value in facts.items() if name != "pace")
