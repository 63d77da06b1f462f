"""Peak memory, first load, energy, battery and sustained speed: what follows from a workload and its latency."""

from __future__ import annotations

from math import exp
from typing import NoReturn

from edgedistill.errors import SpecError
from edgedistill.predict import tables
from edgedistill.predict.classes import CLASSES, family_of, precision_of
from edgedistill.predict.devices import Device
from edgedistill.predict.features import describes, features
from edgedistill.predict.latency import class_name, latency
from edgedistill.predict.llm import kv_bytes, rate
from edgedistill.predict.llm_features import llm_features, quant_of
from edgedistill.predict.rows import INIT_MS, PEAK_MB, exact, stated
from edgedistill.predict.specs import Calibration, Forecast, LlmWorkload, Workload

BYTES = {"float": 4.0, "int8": 1.0, "w8a16": 1.0, "dynamic_int8": 1.0}
BATCH_TOKENS = 512  # llama.cpp's: its compute buffer holds a batch of output rows in fp32 (checked on four models)
COMPUTE_MB = 6.0
LLAMA_PROCESS_MB = 60.0
FACTOR_LLM_MEMORY = 0.15  # log: size of a file is known within 5 %, the runtime's own share is not


def memory(device: Device, work: Workload) -> Forecast:
    """Peak memory of the process in MB: runtime, file, packed weights, activations.

    Raises:
        SpecError: for a runtime and unit without memory measurements, or a model without features.
    """
    if not describes(work) and (rows := stated(device, work, PEAK_MB)):
        return exact(device, rows, PEAK_MB)
    return _told_memory(device, work)


def _told_memory(device: Device, work: Workload) -> Forecast:
    name = class_name(device, work)
    runtime = "litert" if work.unit != "npu" else family_of(work.runtime)
    found = tables.coefficients()["memory"].get(f"{runtime} {work.unit}")
    if found is None:
        known = ", ".join(tables.coefficients()["memory"])
        raise SpecError(f"no memory measurements of runtime {work.runtime!r} on the {work.unit}. Known: {known}.")
    row = next((row for row in tables.latency_rows(work.model) if row["size_mb"]), None) if work.model else None
    one = features(work, CLASSES[name], tables.coefficients()["impute"], row)
    if one is None:
        raise SpecError(
            f"model {work.model!r} has no features, and no row states its memory on {device.name}. Describe it: gmacs,"
            " params_m, peak_act_m."
        )
    file_mb, flags = work.file_mb, []
    if file_mb is None:
        file_mb = one.params_m * BYTES[precision_of(work.precision)]
        flags.append("file_mb told from params_m")
    peak = one.peak_act_m
    if peak is None:
        peak = 0.12 * one.activations_m
        flags.append("peak_act_m told from the other features")
    per_file = found["per_file"]
    packed = max(per_file - 1.0, 0.0)
    terms = {
        "runtime_mb": found["base_mb"],
        "file_mb": (per_file - packed) * file_mb,
        "packed_mb": packed * file_mb * work.signatures,
        "activations_mb": found["per_activation"] * peak * 4.0,
    }
    middle = sum(terms.values())
    low, high = found["interval"]
    widen = 0.15 * len(flags)
    return Forecast(
        quantity="peak_memory_mb",
        unit="MB",
        median=middle,
        low=middle * exp(low - widen),
        high=middle * exp(high + widen),
        confidence=0.8,
        method=f"fitted: {runtime} {work.unit}, {found['rows']} rows; the same on every device",
        terms=terms,
        level="fitted",
        device=device.name,
        flags=tuple(flags),
    )


def llm_memory(device: Device, work: LlmWorkload) -> Forecast:
    """Peak memory of a language model in MB: weights, keys and values, compute buffer, process."""
    one = llm_features(work)
    bits = tables.coefficients()["llm"]["bits"].get(quant_of(work.quant), 4.6)
    file_mb, flags = work.file_mb, one.told()
    if file_mb is None:
        file_mb = one.params_b * bits / 8 * 1e3 + one.tied * one.embedding_b * 8.5 / 8 * 1e3
    terms = {
        "weights_mb": file_mb,
        "kv_mb": kv_bytes(work, one) / 1e6,
        "compute_mb": one.vocabulary * BATCH_TOKENS * 4 / 1e6 + COMPUTE_MB,
        "process_mb": LLAMA_PROCESS_MB,
    }
    middle = sum(terms.values())
    widen = FACTOR_LLM_MEMORY + 0.05 * len(flags)
    if device.ram_gb and middle > 0.7 * device.ram_gb * 1e3:
        flags.append(f"more than 70 % of the device's {device.ram_gb:g} GB: the system may refuse it")
    return Forecast(
        quantity="peak_memory_mb",
        unit="MB",
        median=middle,
        low=middle * exp(-widen),
        high=middle * exp(widen),
        confidence=0.8,
        method="computed: file, fp16 keys and values, llama.cpp's batch of output rows",
        terms=terms,
        level="fitted",
        device=device.name,
        flags=tuple(flags),
    )


def first_load(device: Device, work: Workload) -> Forecast:
    """Milliseconds until the first inference can start; of LiteRT on two phones, so the same for every device.

    Raises:
        SpecError: for a runtime or unit that no row of start-up times covers.
    """
    if not describes(work) and (rows := stated(device, work, INIT_MS)):
        return exact(device, rows, INIT_MS)
    found = tables.coefficients()["load"].get(f"{family_of(work.runtime)} {work.unit}")
    if found is None:
        raise SpecError(
            f"no start-up times of runtime {work.runtime!r} on the {work.unit}. Known: litert on cpu and gpu."
        )
    size = _told_memory(device, work)
    file_mb = work.file_mb or size.terms["file_mb"] / max(
        min(1.0, tables.coefficients()["memory"][f"litert {work.unit}"]["per_file"]), 0.01
    )
    terms = {"runtime_ms": found["base_ms"], "file_ms": found["per_file"] * file_mb}
    middle = sum(terms.values())
    low, high = found["interval"]
    return Forecast(
        quantity="first_load_ms",
        unit="ms",
        median=middle,
        low=middle * exp(low),
        high=middle * exp(high),
        confidence=0.8,
        method="fitted: LiteRT on Pixel 9 Pro and Galaxy S25 Ultra; other chips are not covered",
        terms=terms,
        level="fitted",
        device=device.name,
        flags=size.flags,
    )


def energy(device: Device, work: Workload | LlmWorkload, calibration: Calibration | None = None) -> Forecast:
    """Millijoules of the whole phone for one inference, or for one generated token: power x time.

    Raises:
        SpecError: for a device without a battery, as only whole-phone power is published.
    """
    if device.battery_wh is None:
        _no_battery(device)
    found = tables.coefficients()["energy"]
    if isinstance(work, LlmWorkload):
        power, (low_w, high_w) = found["llm_w"]["median"], found["llm_w"]["interval"]
        pace = rate(device, work, "decode", calibration)
        middle, low, high = 1e3 * power / pace.median, low_w, high_w
        return Forecast(
            quantity="energy_mj",
            unit="mJ per token",
            median=middle,
            low=1e3 * power * exp(low) / pace.high,
            high=1e3 * power * exp(high) / pace.low,
            confidence=0.8,
            level=pace.level,
            device=device.name,
            method=f"whole-phone power ({found['llm_w']['rows']} runs) / tokens per second ({pace.method})",
            terms={"power_w": power, "tokens_per_s": pace.median},
            flags=pace.flags,
            missing=pace.missing,
        )
    vision, time = found["vision_w"], latency(device, work, calibration)
    terms = {"power_w": vision["median"], "latency_ms": time.median}
    low, high = vision["low"] * time.low, vision["high"] * time.high
    macs = work.gmacs or next((v for v in [_stored_gmacs(device, work)] if v is not None), None)
    if macs is not None and work.unit in found["per_mmac_mj"]:
        terms["by_macs_mj"] = found["per_mmac_mj"][work.unit] * macs * 1e3
        low, high = min(low, terms["by_macs_mj"] / 2), max(high, terms["by_macs_mj"] * 2)
    return Forecast(
        quantity="energy_mj",
        unit="mJ per inference",
        median=vision["median"] * time.median,
        low=low,
        high=high,
        confidence=0.8,
        method=f"whole-phone power (1.2-2.2 W) x predicted latency ({time.level}); interval joined with mJ/MAC",
        terms=terms,
        level=time.level,
        device=device.name,
        flags=time.flags,
        missing=time.missing,
    )


def battery(
    device: Device, work: Workload | LlmWorkload, per_hour: float, calibration: Calibration | None = None
) -> Forecast:
    """Battery in percent for each hour at `per_hour` inferences (or tokens) an hour: 100 x mJ x rate / (Wh x 3.6e6).

    Raises:
        SpecError: for a device without a battery.
    """
    each = energy(device, work, calibration)
    share = 100 * per_hour / ((device.battery_wh or 1.0) * 3.6e6)
    return each.model_copy(
        update={
            "quantity": "battery_percent_per_hour",
            "unit": "%/h",
            "median": each.median * share,
            "low": each.low * share,
            "high": each.high * share,
            "terms": {"energy_mj": each.median, "per_hour": per_hour, "battery_wh": device.battery_wh},
            "method": f"energy x rate / battery; the screen and idle power are not in it; {each.method}",
        }
    )


def sustained(burst: Forecast) -> Forecast:
    """A burst's latency or rate after minutes of load: a phone keeps 0.7 of its speed (0.51 to 0.76 seen)."""
    keep = tables.coefficients()["energy"]["sustained"]
    slower = burst.unit == "ms"
    ends = (keep["high"], keep["low"]) if slower else (keep["low"], keep["high"])
    factors = [1 / part if slower else part for part in (keep["median"], *ends)]
    return burst.model_copy(
        update={
            "quantity": f"sustained_{burst.quantity}",
            "median": burst.median * factors[0],
            "low": burst.low * factors[1],
            "high": burst.high * factors[2],
            "terms": {**burst.terms, "sustained_share": keep["median"]},
            "method": f"{burst.method}; throttled as two phones were",
        }
    )


def _stored_gmacs(device: Device, work: Workload) -> float | None:
    one = features(work, CLASSES[class_name(device, work)], tables.coefficients()["impute"])
    return None if one is None else one.gmacs


def _no_battery(device: Device) -> NoReturn:
    raise SpecError(
        f"{device.name}: battery_wh is not stated, and only whole phones' power is published, so there is no energy."
        " Latency and memory can be predicted without it."
    )
