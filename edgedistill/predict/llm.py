"""Tokens per second of a language model: the cell of its device, unit and quantization, or what specifications say."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log
from statistics import median
from typing import Any, Literal, NamedTuple

from edgedistill.errors import SpecError, did_you_mean
from edgedistill.predict import tables
from edgedistill.predict.devices import Device, of_name
from edgedistill.predict.llm_features import QUANTS, WIDE, LlmFeatures, llm_features, quant_of, spec_effect, spec_kernel
from edgedistill.predict.specs import Calibration, Forecast, Level, LlmWorkload

Phase = Literal["decode", "prefill"]
COLUMNS = {"decode": "tg_tps", "prefill": "pp_tps"}
CALIBRATED_CONTEXT = 512  # tokens that the rows' runs hold in the middle: 256 prompt, 64 generated
OVERHEAD_B = 0.1


class Cost(NamedTuple):
    """Seconds for each 10^9 parameters, the unit's overhead in the same parameters, and how they are known."""

    log_s: float
    overhead_b: float
    penalty: float
    level: Level
    key: str
    told: str
    missing: tuple[str, ...] = ()


def rate(device: Device, work: LlmWorkload, phase: Phase, calibration: Calibration | None = None) -> Forecast:
    """Tokens per second of a phase, with its 80% interval.

    Raises:
        SpecError: for an unknown model or quantization, or a device without any fact that would do.
    """
    quant = quant_of(work.quant)
    if not quant:
        raise SpecError(f"unknown quantization {work.quant!r}{did_you_mean(work.quant, [*QUANTS, 'w4', 'w8'])}")
    exact = _exact(device, work, phase, quant)
    if exact is not None and calibration is None:
        return exact
    one = llm_features(work)
    found = tables.coefficients()["llm"][phase]
    cost = _cost(device, work, phase, quant, found)
    amount = one.decode_b if phase == "decode" else one.prefill_b
    seconds = {
        "weights_s": exp(cost.log_s) * amount,
        "overhead_s": exp(cost.log_s) * cost.overhead_b,
        "context_s": _context_s(device, work, one) if phase == "decode" else 0.0,
    }
    name = f"llm {phase} {work.backend}"
    factor = exp(cost.penalty * one.recurrent) * (calibration.factors.get(name, 1.0) if calibration else 1.0)
    value = 1 / (sum(seconds.values()) * factor)
    calibrated = calibration is not None and name in calibration.factors
    key = "fitted, recurrent" if one.recurrent and cost.level == "fitted" else cost.key
    low, high = found["intervals"].get(key, found["intervals"]["spec only"])
    flags = [f"{field} told from the number of parameters" for field in one.imputed]
    if one.params_b > 16 or one.params_b < 0.3:
        low, high = low - 0.3, high + 0.3
        flags.append("parameters: outside the calibrated range, interval widened")
    return Forecast(
        quantity=f"{phase}_tokens_per_s",
        unit="tokens/s",
        median=value,
        low=value * exp(low),
        high=value * exp(high),
        confidence=0.8,
        method=f"{cost.level}: {cost.told}" + ("; scaled by own measurements" if calibrated else ""),
        terms={**{name: factor * part for name, part in seconds.items()}, "parameters_b": amount},
        level="calibrated" if calibrated else cost.level,
        device=device.name,
        flags=tuple(flags),
        missing=cost.missing,
    )


def kv_bytes(work: LlmWorkload, one: LlmFeatures) -> float:
    """Bytes of keys and values at the full context."""
    return one.kv_bytes_per_token * work.context_tokens


def _context_s(device: Device, work: LlmWorkload, one: LlmFeatures) -> float:
    """Reading keys and values beyond what the calibrated runs held: bytes over half the bandwidth."""
    more = max(0.0, work.prompt_tokens + work.generated_tokens / 2 - CALIBRATED_CONTEXT)
    bandwidth = device.bandwidth_gb_per_s or 30.0
    return more * one.kv_bytes_per_token / (0.5 * bandwidth * 1e9)


def _exact(device: Device, work: LlmWorkload, phase: Phase, quant: str) -> Forecast | None:
    rows = (
        [
            row
            for row in tables.rows("llm.csv")
            if row["model"] == work.model
            and row["device"] in device.aliases
            and row["unit"] == work.backend
            and quant_of(row["quant"]) == quant
            and row[COLUMNS[phase]]
            and row["runtime"].lower().startswith(work.runtime.lower().split(" ")[0])
        ]
        if work.model
        else []
    )
    if not rows:
        return None
    values = [float(row[COLUMNS[phase]]) for row in rows]
    middle = median(values)
    source = tables.rows("sources.csv")[int(rows[0]["source"])]["source"]
    return Forecast(
        quantity=f"{phase}_tokens_per_s",
        unit="tokens/s",
        median=middle,
        low=min(middle * 0.85, *values, middle),
        high=max(middle * 1.15, *values, middle),
        confidence=0.8,
        method=f"exact row: {rows[0]['runtime']}, {source}",
        terms={"measured_tokens_per_s": middle},
        level="exact row",
        device=device.name,
    )


def _cost(device: Device, work: LlmWorkload, phase: Phase, quant: str, found: Mapping[str, Any]) -> Cost:
    owners = sorted({key.split("|")[0] for key in found["cells"]}, key=lambda name: name not in device.aliases)
    mine = [name for name in owners if name in device.aliases or of_name(name).soc == device.soc]
    if work.runtime.lower().startswith(("llama", "ollama", "gguf")):
        for owner in mine:
            unit = f"{owner}|{work.backend}"
            cells = {key.split("|")[2]: value for key, value in found["cells"].items() if key.startswith(f"{unit}|")}
            if cells:
                kernel = {"w4": "q4_0", "w8": "q8_0"}.get(quant, quant)
                cell = cells.get(kernel)
                if cell is None:
                    cell = sum(cells.values()) / len(cells) + found["quant"].get(f"{work.backend}|{kernel}", 0.3)
                told = f"llama.cpp, {work.backend}, {quant} on {owner}"
                return Cost(
                    cell, found["overhead"][unit], found["penalty"][unit], "fitted", f"fitted, {work.backend}", told
                )
    runtime = work.runtime.lower().split(" ")[0]
    other = {
        key: value
        for key, (value, _) in found["other"].items()
        if (key.split("|")[0] in device.aliases or of_name(key.split("|")[0]).soc == device.soc)
        and key.split("|")[1] == work.backend
        and key.split("|")[2].startswith(runtime[:5])
        and (key.split("|")[3] in WIDE) == (quant in WIDE)
    }
    if other:
        return Cost(
            median(other.values()), OVERHEAD_B, 0.0, "fitted", "spec only", f"other sizes with {runtime} on this chip"
        )
    return _spec_cost(device, work, phase, quant, found)


def _spec_cost(device: Device, work: LlmWorkload, phase: Phase, quant: str, found: Mapping[str, Any]) -> Cost:
    missing, pace = [], 0.0
    if phase == "decode":
        if device.bandwidth_gb_per_s is None:
            missing.append("memory_bandwidth_gb_per_s")
        pace = log(device.bandwidth_gb_per_s or 40.0)
    elif work.backend == "cpu":
        peak = sum(core.gflops * core.cores for core in device.cores) or (device.one_core_gflops or 0.0) * 3
        if not peak:
            missing.append("cpu")
        pace = log(peak or 250.0)
    kernel = spec_kernel(work.runtime, quant)
    costs = found["spec"]["cost"]
    base = costs.get(f"{work.backend}|{kernel}", costs.get(f"{work.backend}|narrow", 0.5))
    slow = found["spec"]["tensor"] if work.backend == "cpu" and "google tensor" in device.soc else 0.0
    effect = spec_effect(found["quant"], work.backend, kernel, quant)
    told = "memory bandwidth and a typical utilisation" if phase == "decode" else "peak rate and a typical utilisation"
    return Cost(base - pace + slow + effect, OVERHEAD_B, 0.3, "spec only", "spec only", told, tuple(missing))
