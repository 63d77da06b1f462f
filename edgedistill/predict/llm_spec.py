"""What specifications say of a device's rate with language models; the coefficients are `calibrate/llm_spec.py`'s."""

from __future__ import annotations

import re
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

# Since when llama.cpp has weights in blocks of rows that dot products take at once, where there are no int8 matrices:
# its pull requests 9921, 17494, 18096, 19356 and 19360, 1.9 to 2.7 times as fast on a Raspberry Pi 5. The rows of such
# CPUs (predict/data/llm.csv) are of March 2024.
REPACKED = {"q4_0": "2024-11", "q4_k_m": "2025-12", "q8_0": "2025-12", "q5_k_m": "2026-02", "q6_k": "2026-02"}

_MONTH = re.compile(r"20\d\d-\d\d")


def build_of(runtime: str) -> str:
    """`llama.cpp 2024-03-26` -> `llama.cpp 2024-03`: the application, and the month of its build where that is said."""
    built = _MONTH.search(runtime)
    return runtime.lower().split(" ")[0] + (f" {built[0]}" if built else "")


def repacked(device: Device, runtime: str, quant: str) -> float:
    """How sure it is that llama.cpp multiplies a prompt by blocks for dot products, on a CPU without int8 matrices.

    A build is as old as the date in `runtime` says ("llama.cpp 2024-03-26"). Without one it has the blocks of q4_0;
    of the others, which came a year later, as many published figures are of builds with them as without: 0.5.
    """
    since = REPACKED.get({"w4": "q4_0", "w8": "q8_0"}.get(quant, quant))
    if since is None or not device.cores:
        return 0.0
    fastest = max(device.cores, key=lambda core: core.gflops)
    if not fastest.dot or fastest.int8_matrices:
        return 0.0
    if built := _MONTH.search(runtime):
        return float(built[0] >= since)
    return 1.0 if since < "2025" else 0.5


def spec_facts(device: Device, unit: str, phase: str, *, told: bool = False, packed: float = 0.0) -> dict[str, float]:
    """`pace`, the log of the rate that binds the phase, where it is stated; and what the chip is known to lack.

    With `told`, a bandwidth that is not stated is told from the cores. `packed`: see `repacked`.
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
        lacks = not max(device.cores, key=lambda core: core.gflops).int8_matrices
        found["lacks:i8mm"] = (1 - packed) * lacks
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
