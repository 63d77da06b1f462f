"""The language-model part of the coefficients: tokens per second by device, unit and quantization.

    seconds per token = exp(cell) * (parameters + overhead of the unit) * exp(recurrent penalty of the unit)

Decode reads `decode_b` parameters for each token, prefill multiplies `prefill_b`; file size is no proxy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgedistill.errors import SpecError
from edgedistill.predict import tables
from edgedistill.predict.calibrate import crossval
from edgedistill.predict.calibrate.crossval import HeldOut
from edgedistill.predict.calibrate.samples import Floats, Ints
from edgedistill.predict.devices import of_name
from edgedistill.predict.llm_features import LlmFeatures, llm_features, quant_of, spec_effect, spec_kernel
from edgedistill.predict.specs import LlmWorkload

SPREAD = 0.1
OVERHEAD_START, OVERHEAD_RIDGE, PENALTY_RIDGE, CELL_RIDGE = 0.1, 0.1, 0.1, 1e-3
SHORT_PROMPT = 64
PHASES = {"decode": "tg_tps", "prefill": "pp_tps"}
Row = Mapping[str, str]


@dataclass(frozen=True)
class LlmFit:
    """Log seconds for each 10^9 parameters by cell, log overhead and penalty by unit."""

    cells: dict[tuple[str, str], float]
    overhead: dict[str, float]
    penalty: dict[str, float]


def llm() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Coefficients of both phases, and the cross-validated errors as rows of a table."""
    rows = [row for row in tables.rows("llm.csv") if quant_of(row["quant"]) and of_name(row["device"]).name]
    found: dict[str, Any] = {"bits": _bits(), "quant": {}}
    figures = []
    for phase, column in PHASES.items():
        usable = [row for row in rows if row[column] and float(row[column]) > 0 and _size(row) is not None]
        main = [row for row in usable if row["runtime"].startswith("llama.cpp (llama.rn")]
        held = held_out(main, phase, column)
        fit = fit_cells(main, phase, column)
        long = [row for row in usable if long_enough(row, phase)]
        spec, spec_held = spec_only(long, phase, column, quant_effects(fit))
        figures += [_figure(phase, name, one) for name, one in {**held, "new chip, spec only": spec_held}.items()]
        found[phase] = {
            "cells": {"|".join(key): round(value, 4) for key, value in sorted(fit.cells.items())},
            "overhead": {key: round(float(np.exp(value)), 4) for key, value in fit.overhead.items()},
            "penalty": {key: round(value, 4) for key, value in fit.penalty.items()},
            "quant": quant_effects(fit),
            "other": other_runtimes(usable, phase, column),
            "spec": spec,
            "intervals": {
                "fitted": _pair(held["new model"]),
                "fitted, recurrent": _pair(held["new model, recurrent"]),
                "spec only": _pair(spec_held),
                **{f"fitted, {unit}": _pair(held[f"new model, {unit}"]) for unit in ("cpu", "gpu", "npu")},
            },
        }
    return found, figures


def unit_key(row: Row) -> str:
    """Device and unit of a row."""
    return f"{row['device']}|{row['unit']}"


def fit_cells(rows: Sequence[Row], phase: str, column: str) -> LlmFit:
    """Cells, overheads and penalties of one phase; pseudo-Huber loss of log seconds, Gauss-Newton."""
    cells = sorted({(unit_key(row), quant_of(row["quant"])) for row in rows})
    units = sorted({unit_key(row) for row in rows})
    cell = np.array([cells.index((unit_key(row), quant_of(row["quant"]))) for row in rows])
    unit = np.array([units.index(unit_key(row)) for row in rows])
    features = [llm_features(workload(row)) for row in rows]
    size = np.array([amount(one, phase) for one in features])
    recurrent = np.array([float(one.recurrent) for one in features])
    log_s = -np.log([float(row[column]) for row in rows])
    start = np.concatenate(
        [
            np.full(len(cells), float(np.median(log_s - np.log(size)))),
            np.full(len(units), np.log(OVERHEAD_START)),
            np.zeros(len(units)),
        ]
    )
    ridge = np.repeat([CELL_RIDGE, OVERHEAD_RIDGE, PENALTY_RIDGE], [len(cells), len(units), len(units)])
    solved = _solve(start, ridge, cell, len(cells) + unit, len(cells) + len(units) + unit, size, recurrent, log_s)
    parts = np.split(solved, [len(cells), len(cells) + len(units)])
    return LlmFit(
        dict(zip(cells, map(float, parts[0]), strict=True)),
        dict(zip(units, map(float, parts[1]), strict=True)),
        dict(zip(units, map(float, parts[2]), strict=True)),
    )


def _solve(
    start: Floats,
    ridge: Floats,
    cell: Ints,
    overhead: Ints,
    penalty: Ints,
    size: Floats,
    recurrent: Floats,
    log_s: Floats,
) -> Floats:
    now, each = start.copy(), np.arange(len(size))
    for _ in range(30):
        extra = np.exp(now[overhead])
        residual = log_s - now[cell] - np.log(size + extra) - recurrent * now[penalty]
        weight = 1 / np.sqrt(1 + (residual / SPREAD) ** 2)
        slope = np.zeros((len(size), len(now)))
        slope[each, cell], slope[each, overhead], slope[each, penalty] = 1.0, extra / (size + extra), recurrent
        normal = (slope * weight[:, None]).T @ slope + np.diag(ridge)
        step = np.linalg.solve(normal, slope.T @ (weight * residual) - ridge * (now - start))
        now = now + np.clip(step, -1, 1)
    return now


def predicted(fit: LlmFit, row: Row, phase: str) -> float | None:
    """Log tokens per second of a row; None: its cell was never measured."""
    one, key = llm_features(workload(row)), unit_key(row)
    cell = fit.cells.get((key, quant_of(row["quant"])))
    if cell is None:
        return None
    return -(cell + float(np.log(amount(one, phase) + np.exp(fit.overhead[key]))) + one.recurrent * fit.penalty[key])


def held_out(rows: Sequence[Row], phase: str, column: str) -> dict[str, HeldOut]:
    """Each model left out in turn: all, plain transformers, recurrent ones, and by unit."""
    errors, keys, units, recurrent = [], [], [], []
    for model in sorted({row["model"] for row in rows}):
        fit = fit_cells([row for row in rows if row["model"] != model], phase, column)
        for row in (row for row in rows if row["model"] == model):
            value = predicted(fit, row, phase)
            if value is not None:
                errors.append(float(np.log(float(row[column]))) - value)
                keys.append(model)
                units.append(row["unit"])
                recurrent.append(llm_features(workload(row)).recurrent)
    error, key, unit, mixed = np.array(errors), np.array(keys), np.array(units), np.array(recurrent)
    masks = {
        "new model": np.ones(len(error), dtype=bool),
        "new model, transformer": ~mixed,
        "new model, recurrent": mixed,
        **{f"new model, {name}": unit == name for name in ("cpu", "gpu", "npu")},
    }
    return {name: HeldOut(error[m], tuple(key[m].tolist()), m[m]) for name, m in masks.items()}


def other_runtimes(rows: Sequence[Row], phase: str, column: str) -> dict[str, list[float]]:
    """Log seconds for each 10^9 parameters by device, unit, runtime and width, and how many rows say so."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if not row["runtime"].startswith("llama.cpp (llama.rn"):
            key = f"{unit_key(row)}|{row['runtime'].lower().split(' ')[0]}|{quant_of(row['quant'])}"
            found.setdefault(key, []).append(_cost(row, phase, column))
    return {key: [round(float(np.median(values)), 4), len(values)] for key, values in sorted(found.items())}


def long_enough(row: Row, phase: str) -> bool:
    """A prompt of a few tokens is decoded rather than prefilled: its rate is not one of prefill."""
    return phase == "decode" or (tables.number(row["pp_tokens"]) or SHORT_PROMPT) >= SHORT_PROMPT


def spec_only(
    rows: Sequence[Row], phase: str, column: str, effects: Mapping[str, float]
) -> tuple[dict[str, Any], HeldOut]:
    """By unit and kind of kernel: how seconds for each 10^9 parameters follow bandwidth (decode) or peak (prefill)."""
    grouped: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        pace = spec_rate(row["device"], row["unit"], phase)
        if pace is not None:
            kernel = spec_kernel(row["runtime"], quant_of(row["quant"]))
            cost = _cost(row, phase, column) + pace - spec_effect(effects, row["unit"], kernel, quant_of(row["quant"]))
            grouped.setdefault((row["unit"], kernel, row["device"]), []).append(cost)
    middle = {key: float(np.median(values)) for key, values in grouped.items()}
    slow = "google tensor"
    found: dict[str, Any] = {"tensor": 0.0, "cost": {}}
    for unit, width in sorted({key[:2] for key in middle}):
        plain = [v for k, v in middle.items() if k[:2] == (unit, width) and slow not in of_name(k[2]).soc]
        if plain:
            found["cost"][f"{unit}|{width}"] = round(float(np.median(plain)), 4)
    tensor = [
        v - found["cost"].get("|".join(k[:2]), v)
        for k, v in middle.items()
        if slow in of_name(k[2]).soc and k[0] == "cpu"
    ]
    found["tensor"] = round(float(np.median(tensor)), 4) if tensor else 0.0
    errors, keys = [], []
    for key, value in sorted(middle.items()):
        others = [v for k, v in middle.items() if k[:2] == key[:2] and of_name(k[2]).soc != of_name(key[2]).soc]
        if others:
            offset = found["tensor"] if slow in of_name(key[2]).soc and key[0] == "cpu" else 0.0
            errors.append(float(np.median(others)) + offset - value)
            keys.append(key[2])
    return found, HeldOut(np.array(errors), tuple(keys), np.ones(len(errors), dtype=bool))


def spec_rate(device: str, unit: str, phase: str) -> float | None:
    """Log of the rate that a phase is bound by, as far as a specification tells; None: not stated."""
    one = of_name(device)
    if phase == "decode":
        return float(np.log(one.bandwidth_gb_per_s)) if one.bandwidth_gb_per_s else None
    if unit == "cpu":
        return float(np.log(sum(core.gflops * core.cores for core in one.cores))) if one.cores else None
    return 0.0


def quant_effects(fit: LlmFit) -> dict[str, float]:
    """How much slower a quantization is than its unit's others, by kind of unit: for cells nobody measured."""
    away: dict[str, list[float]] = {}
    for key in sorted({key for key, _ in fit.cells}):
        mine = {quant: value for (unit, quant), value in fit.cells.items() if unit == key}
        for quant, value in mine.items():
            away.setdefault(f"{key.split('|')[1]}|{quant}", []).append(value - float(np.mean(list(mine.values()))))
    return {key: round(float(np.mean(values)), 4) for key, values in sorted(away.items())}


def workload(row: Row) -> LlmWorkload:
    """The workload that a row measured."""
    return LlmWorkload(model=row["model"], params_b=float(row["params_b"]) if row["params_b"] else None)


def amount(one: LlmFeatures, phase: str) -> float:
    """Parameters that a phase handles for each token, 10^9."""
    return one.decode_b if phase == "decode" else one.prefill_b


def _size(row: Row) -> float | None:
    try:
        return llm_features(workload(row)).decode_b
    except SpecError:
        return None


def _cost(row: Row, phase: str, column: str) -> float:
    one = llm_features(workload(row))
    return -float(np.log(float(row[column]))) - float(np.log(amount(one, phase) + OVERHEAD_START))


def _bits() -> dict[str, float]:
    """Bits for each parameter by quantization, the second copy of a tied output layer apart."""
    found: dict[str, list[float]] = {}
    for row in tables.rows("llm.csv"):
        if row["file_mb"] and row["params_b"] and row["runtime"].startswith("llama.cpp (llama.rn"):
            one = llm_features(workload(row))
            rest = float(row["file_mb"]) / 1e3 - one.tied * one.embedding_b * 8.5 / 8
            found.setdefault(quant_of(row["quant"]), []).append(rest * 8 / one.params_b)
    bits = {quant: round(float(np.median(values)), 2) for quant, values in sorted(found.items())}
    return {**bits, "w4": 4.5, "w8": 8.5, "f16": 16.0}


def _pair(held: HeldOut) -> list[float]:
    low, high = crossval.quantiles(held.error)
    return [round(min(low, -0.05), 4), round(max(high, 0.05), 4)]


def _figure(phase: str, split: str, held: HeldOut) -> dict[str, Any]:
    coverage = crossval.coverage(held)
    return {
        "class": f"llm {phase}",
        "split": split,
        "rows": len(held.error),
        "mdape": round(crossval.mdape(held.error), 1),
        "mdape_traced": None,
        "within_1.5x": round(crossval.within(held.error, 1.5)),
        "within_2x": round(crossval.within(held.error, 2.0)),
        "coverage_80": None if np.isnan(coverage) else round(100 * coverage),
    }
