"""Tokens per second of a language model: the cell of its device, unit and quantization, or what specifications say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, hypot, log, sqrt
from statistics import median
from typing import Any, Literal, NamedTuple

from edgedistill.errors import SpecError, did_you_mean
from edgedistill.predict import tables
from edgedistill.predict.devices import BANDWIDTH_SPREAD, Device, of_name
from edgedistill.predict.llm_features import (
    KERNELS,
    LAYERS_IN,
    QUANTS,
    WIDE,
    WIDER,
    LlmFeatures,
    describes,
    known_runtime,
    llm_features,
    quant_of,
    spec_effect,
    spec_kernel,
    wider,
)
from edgedistill.predict.llm_spec import MISSING, repacked, spec_beyond, spec_facts, spec_log_s
from edgedistill.predict.specs import Calibration, Forecast, Level, LlmWorkload

Phase = Literal["decode", "prefill"]
COLUMNS = {"decode": "tg_tps", "prefill": "pp_tps"}
CALIBRATED_CONTEXT = 512  # tokens that the rows' runs hold in the middle: 256 prompt, 64 generated
CALIBRATED_PROMPT, CALIBRATED_GENERATED = 256, 64
UNMEASURED_KERNEL = 0.3  # log: a kernel that no row of the unit has runs slower than the unit's usual ones
UNSTATED = 1.2816 * BANDWIDTH_SPREAD  # log, 80 %: how far a rate is off that is told from the cores
LONGEST_PROMPT = 1107  # of the rows; what earlier tokens cost beyond it is computed, not measured
RANGE_B, WIDER_OUTSIDE = (0.3, 16.0), 0.3


class Cost(NamedTuple):
    """Log seconds for 10^9 parameters, seconds for `LAYERS_IN` layers and recurrent layers, and how it is known."""

    log_s: float
    layers_s: float
    recurrent_s: float
    level: Level
    key: str
    told: str
    missing: tuple[str, ...] = ()
    beyond: float = 0.0  # log distance of the device's pace from those that were measured


def rate(device: Device, work: LlmWorkload, phase: Phase, calibration: Calibration | None = None) -> Forecast:
    """Tokens per second of a phase, with its 80% interval.

    Seconds for each token = parameters + layers + keys and values (decode) or attention (prefill) beyond the
    calibrated request; a longer prompt never speeds a token up.

    Raises:
        SpecError: for an unknown model or quantization, or a device without any fact that would do.
    """
    quant = quant_of(work.quant)
    if not quant:
        raise SpecError(f"unknown quantization {work.quant!r}{did_you_mean(work.quant, [*QUANTS, 'w4', 'w8'])}")
    modelled = _modelled(device, work, phase, quant, calibration)
    rows = _rows(device, work, phase, quant) if calibration is None else []
    if not rows:
        return modelled
    tokens = [tables.number(row["pp_tokens"]) or CALIBRATED_PROMPT for row in rows]
    run = {"prompt_tokens": max(round(median(tokens)), 1), "generated_tokens": CALIBRATED_GENERATED}
    then = _modelled(device, work.model_copy(update=run), phase, quant, None)
    found = _exact(device, rows, phase, min(modelled.median / then.median, 1.0))
    return found.model_copy(update={"flags": tuple(one for one in modelled.flags if one.startswith("prompt:"))})


def _modelled(device: Device, work: LlmWorkload, phase: Phase, quant: str, calibration: Calibration | None) -> Forecast:
    one = llm_features(work)
    found = tables.coefficients()["llm"][phase]
    cost = _cost(device, work, phase, quant, found)
    amount = one.decode_b if phase == "decode" else one.prefill_b
    seconds = {
        "weights_s": exp(cost.log_s) * amount,
        "layers_s": cost.layers_s * one.layers / LAYERS_IN,
        "recurrent_s": cost.recurrent_s * one.recurrent_layers / LAYERS_IN,
        "context_s": _context_s(device, work, one) if phase == "decode" else exp(cost.log_s) * _attention_b(work, one),
    }
    name = f"llm {phase} {work.backend}"
    factor = calibration.factors.get(name, 1.0) if calibration else 1.0
    value = 1 / (sum(seconds.values()) * factor)
    calibrated = calibration is not None and name in calibration.factors
    low, high = found["intervals"].get(cost.key, found["intervals"]["spec only"])
    flags = _flags(work, one, quant)
    if 0 < _repacked(device, work, phase, work.runtime, quant) < 1:
        flags.append(
            "build: not dated, taken between those before and after 2025-12; runtime='llama.cpp 2026-02' tells"
        )
    if cost.missing:
        slope = found["spec"].get(f"pace:{work.backend}", 1.0)
        low, high = -hypot(low, UNSTATED * slope), hypot(high, UNSTATED * slope)
        flags.append(f"{cost.missing[0]}: not stated, told from the cores or taken as typical, interval widened")
    away = max(log(one.params_b / RANGE_B[1]), log(RANGE_B[0] / one.params_b), 0.0)
    if away:
        low, high = low - WIDER_OUTSIDE * (1 + away), high + WIDER_OUTSIDE * (1 + away)
        flags.append("parameters: outside the calibrated range, interval widened")
    longest = work.prompt_tokens / LONGEST_PROMPT
    if longest > 1:
        share = seconds["context_s"] / sum(seconds.values())
        low, high = (end * (1 + WIDER_OUTSIDE * share * log(longest) / abs(end)) for end in (low, high))
        flags.append(f"prompt: longer than the {LONGEST_PROMPT} tokens that were measured, interval widened")
    if cost.beyond:
        low, high = low - WIDER_OUTSIDE * cost.beyond, high + WIDER_OUTSIDE * cost.beyond
        flags.append("device: faster or slower than any that was measured, interval widened")
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


def _flags(work: LlmWorkload, one: LlmFeatures, quant: str) -> list[str]:
    flags = one.told()
    if not known_runtime(work.runtime):
        flags.append(f"runtime {work.runtime!r}: no measurements, taken as one like those there are")
    if _is_llama(work.runtime) and quant in KERNELS:
        flags.append(f"{work.quant}: taken from {KERNELS[quant]}, the nearest measured kernel")
    if work.quant.lower().startswith(("iq2", "iq3", "iq4", "tq")):
        flags.append(f"{work.quant}: taken as {quant}, the measured kernel of as many bits")
    return flags


def _is_llama(runtime: str) -> bool:
    return runtime.lower().startswith(("llama", "ollama", "gguf"))


def kv_bytes(work: LlmWorkload, one: LlmFeatures) -> float:
    """Bytes of keys and values at the full context, which holds the request at least."""
    return one.kv_bytes_per_token * max(work.context_tokens, work.prompt_tokens + work.generated_tokens)


def _context_s(device: Device, work: LlmWorkload, one: LlmFeatures) -> float:
    """Reading keys and values beyond what the calibrated runs held: bytes over half the bandwidth."""
    more = max(0.0, work.prompt_tokens + work.generated_tokens / 2 - CALIBRATED_CONTEXT)
    bandwidth = device.bandwidth_gb_per_s or 30.0
    return more * one.kv_bytes_per_token / (0.5 * bandwidth * 1e9)


def _attention_b(work: LlmWorkload, one: LlmFeatures) -> float:
    """Multiply-accumulates of attention for each prompt token beyond those of a calibrated prompt, 10^9.

    Formula: 2 x layers x width x tokens seen, half the prompt in the middle; the width from 12 x width^2 weights in a
    layer. Layers that keep a state see no earlier tokens.
    """
    more = max(0.0, (work.prompt_tokens - CALIBRATED_PROMPT) / 2)
    width = sqrt(one.prefill_b * 1e9 / (12 * one.layers))
    return 2 * (one.layers - one.recurrent_layers) * width * more / 1e9


def _rows(device: Device, work: LlmWorkload, phase: Phase, quant: str) -> list[tables.Row]:
    """Measurements of the very model, device, unit, runtime and quantization."""
    if not work.model:
        return []
    return [
        row
        for row in tables.rows("llm.csv")
        if row["model"] == work.model
        and not describes(work, row)
        and row["device"] in device.aliases
        and row["unit"] == work.backend
        and quant_of(row["quant"]) == quant
        and row[COLUMNS[phase]]
        and row["runtime"].lower().startswith(work.runtime.lower().split(" ")[0])
    ]


def _exact(device: Device, rows: Sequence[tables.Row], phase: Phase, share: float) -> Forecast:
    """The median of the rows, times the share of its rate that a longer request leaves."""
    values = [share * float(row[COLUMNS[phase]]) for row in rows]
    middle, apart = median(values), sqrt(share)
    source = tables.rows("sources.csv")[int(rows[0]["source"])]["source"]
    longer = "" if share == 1.0 else f", x{share:.2f} for a longer request"
    return Forecast(
        quantity=f"{phase}_tokens_per_s",
        unit="tokens/s",
        median=middle,
        low=apart * min(middle * 0.85, *values, middle),
        high=max(middle * 1.15, *values, middle) / apart,
        confidence=0.8,
        method=f"exact row: {rows[0]['runtime']}, {source}{longer}",
        terms={"measured_tokens_per_s": middle / share},
        level="exact row",
        device=device.name,
    )


def _cost(device: Device, work: LlmWorkload, phase: Phase, quant: str, found: Mapping[str, Any]) -> Cost:
    device.refuse_absent(work.backend)
    owners = sorted({key.split("|")[0] for key in found["cells"]}, key=lambda name: name not in device.aliases)
    mine = [name for name in owners if name in device.aliases or of_name(name).soc == device.soc]
    floats = wider(work.backend, quant, phase)
    if _is_llama(work.runtime):
        for owner in mine:
            unit = f"{owner}|{work.backend}"
            cells = {key.split("|")[2]: value for key, value in found["cells"].items() if key.startswith(f"{unit}|")}
            if cells:
                kernel = KERNELS.get(quant, quant)
                cell = cells.get(kernel)
                if cell is None:
                    effect = found["quant"].get(f"{work.backend}|{kernel}", UNMEASURED_KERNEL)
                    cell = sum(cells.values()) / len(cells) + effect
                told = f"llama.cpp, {work.backend}, {quant} on {owner}"
                layers, recurrent = map(exp, found["layers"][unit])
                return Cost(cell + floats, layers, recurrent, "fitted", f"fitted, {work.backend}", told)
    packed = _repacked(device, work, phase, work.runtime, quant)
    other = _other_costs(device, work, phase, quant, found)
    if not other:
        return _spec_cost(device, work, phase, quant, found, packed=packed)
    told = f"other sizes with {work.runtime.lower().split(' ')[0]} on this chip"
    same = [cost for cost, very in other if very]
    log_s = median(same or [cost for cost, _ in other]) - _blocks(found) * packed
    return _relative(found, log_s, "fitted", told)._replace(key="other sizes" if same else "spec only")


def _blocks(found: Mapping[str, Any]) -> float:
    """Log of what blocks for dot products are worth in a prompt: as much as matrix instructions, as far as is known."""
    return float(found["spec"].get("lacks:i8mm", 0.0))


def _repacked(device: Device, work: LlmWorkload, phase: Phase, runtime: str, quant: str) -> float:
    applies = phase == "prefill" and work.backend == "cpu" and _is_llama(runtime)
    return repacked(device, runtime, quant) if applies else 0.0


def _other_costs(
    device: Device, work: LlmWorkload, phase: Phase, quant: str, found: Mapping[str, Any]
) -> list[tuple[float, bool]]:
    """Log seconds for 10^9 parameters by rows of other applications on this chip, at the quantization asked for.

    As without blocks for dot products: what builds with them took is made longer by what such blocks are worth. And
    whether the rows are of that very quantization, and of builds that do alike.
    """
    kernel, runtime = spec_kernel(work.runtime, quant, work.backend, phase), work.runtime.lower().split(" ")[0]
    costs = []
    for key, (value, _) in found["other"].items():
        owner, unit, build, theirs = key.split("|")
        if unit != work.backend or (theirs in WIDE) != (quant in WIDE):
            continue
        if phase == "prefill" and (theirs in WIDER) != (quant in WIDER):  # floats and integers are multiplied apart
            continue
        if owner not in device.aliases and of_name(owner).soc != device.soc:
            continue
        if kernel == "llama" and _is_llama(build):
            mine, other = (spec_effect(found["quant"], unit, kernel, name, phase) for name in (quant, theirs))
            packed = _repacked(device, work, phase, build, theirs)
            very = theirs == quant and packed == _repacked(device, work, phase, work.runtime, quant)
            costs.append((value + mine - other + _blocks(found) * packed, very))
        elif build.startswith(runtime[:5]):
            costs.append((value, theirs == quant))
    return costs


def _spec_cost(
    device: Device, work: LlmWorkload, phase: Phase, quant: str, found: Mapping[str, Any], *, packed: float
) -> Cost:
    facts = spec_facts(device, work.backend, phase, told=True, packed=packed)
    if quant in WIDER and "lacks:i8mm" in facts:  # matrices of int8 are of no use to floats
        facts["lacks:i8mm"] = 1.0
    kernel = spec_kernel(work.runtime, quant, work.backend, phase)
    log_s = spec_log_s(found["spec"], work.backend, kernel, facts)
    log_s += spec_effect(found["quant"], work.backend, kernel, quant, phase)
    told = "memory bandwidth and a typical utilisation" if phase == "decode" else "peak rate and a typical utilisation"
    missing = () if "pace" in spec_facts(device, work.backend, phase) else (MISSING[phase, work.backend],)
    beyond = spec_beyond(found["spec"], work.backend, facts)
    return _relative(found, log_s, "spec only", told, missing)._replace(beyond=beyond)


def _relative(found: Mapping[str, Any], log_s: float, level: Level, told: str, missing: tuple[str, ...] = ()) -> Cost:
    """A cost whose layers are as dear, beside its parameters, as those of the units that were calibrated."""
    layers, recurrent = (exp(log_s) * part for part in found["relative"])
    return Cost(log_s, layers, recurrent, level, "spec only", told, missing)
