"""The language-model part of the coefficients: tokens per second by device, unit and quantization (`llm_fit.py`).

Decode reads `decode_b` parameters for each token, prefill multiplies `prefill_b`; file size is no proxy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgedistill.errors import SpecError
from edgedistill.predict import tables
from edgedistill.predict.calibrate import crossval
from edgedistill.predict.calibrate.baselines import of_language
from edgedistill.predict.calibrate.crossval import HeldOut
from edgedistill.predict.calibrate.intervals import interval, rounded
from edgedistill.predict.calibrate.latency import figure
from edgedistill.predict.calibrate.llm_fit import (
    MENU,
    RIDGES,
    LlmFit,
    LlmSamples,
    Ridges,
    Row,
    amount,
    fit_cells,
    log_seconds,
    relative,
    samples,
    unit_key,
    workload,
)
from edgedistill.predict.calibrate.llm_spec import fit_spec, groups, spec_held_out
from edgedistill.predict.calibrate.samples import Floats
from edgedistill.predict.devices import of_name
from edgedistill.predict.llm_features import LAYERS_IN, llm_features, quant_of
from edgedistill.predict.llm_spec import build_of

SHORT_PROMPT = 64
BACKBONE = "llama.cpp (llama.rn"  # the application whose rows have each model in each quantization on each unit
PHASES = {"decode": "tg_tps", "prefill": "pp_tps"}
# Models that are built alike are held out together: of one family, the layers of one tell those of the other.
FAMILIES = {"deepseek-r1-distill-qwen": "qwen2.5", "qwen2.5": "qwen2.5", "qwen3.5": "qwen3.5", "phi": "phi"}


def llm() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Coefficients of both phases, and the cross-validated errors as rows of a table."""
    rows = [row for row in tables.rows("llm.csv") if quant_of(row["quant"]) and of_name(row["device"]).name]
    found: dict[str, Any] = {"bits": _bits()}
    figures = []
    for phase, column in PHASES.items():
        usable = [row for row in rows if row[column] and float(row[column]) > 0 and _size(row) is not None]
        usable = all_threads(usable)
        data = samples(backbone(usable), phase, column)
        held = held_out(data)
        fit = fit_cells(data)
        extra = relative(fit)
        long = [row for row in usable if long_enough(row, phase)]
        known = groups(long, phase, lambda row: _cost(row, phase, column, extra), quant_effects(fit))  # noqa: B023
        spec_held = spec_held_out(known)
        held["new chip, spec only"] = spec_held
        held["new model, other applications"] = other_sizes(usable, phase, column, extra)
        rows_of = [figure(f"llm {phase}", name, one) for name, one in held.items()]
        rows_of[0]["simpler"] = of_language(data, found["bits"])
        figures += rows_of
        found[phase] = {
            "cells": {"|".join(key): round(value, 4) for key, value in sorted(fit.cells.items())},
            "layers": {key: [round(value, 4) for value in costs] for key, costs in fit.units.items()},
            "relative": [round(value, 4) for value in extra],
            "quant": quant_effects(fit),
            "other": other_runtimes(usable, phase, column, extra),
            "spec": fit_spec(known),
            "intervals": {
                "spec only": _ends(spec_held),
                "other sizes": _ends(held["new model, other applications"]),
                **{f"fitted, {unit}": _both(held, unit) for unit in ("cpu", "gpu", "npu")},
            },
        }
    return found, figures


def backbone(rows: Sequence[Row]) -> list[Row]:
    """The rows of one application and build on three phones: each model in each quantization on each unit."""
    return [row for row in rows if row["runtime"].startswith(BACKBONE)]


def all_threads(rows: Sequence[Row]) -> list[Row]:
    """Without rows of fewer threads than others of their device, unit and runtime have: nobody ships with those."""

    def key(row: Row) -> tuple[str, str, str]:
        return row["device"], row["unit"], row["runtime"].lower().split(" ")[0]

    most: dict[tuple[str, str, str], float] = {}
    for row in rows:
        most[key(row)] = max(most.get(key(row), 0.0), tables.number(row["threads"]) or 0.0)
    return [row for row in rows if not row["threads"] or float(row["threads"]) >= most[key(row)]]


def family(model: str) -> str:
    """Models that are held out together."""
    return next((name for start, name in FAMILIES.items() if model.startswith(start)), model)


def errors(data: LlmSamples, labels: Sequence[str], ridges: Ridges = RIDGES) -> Floats:
    """log(measured / predicted) tokens per second with each label left out in turn; NaN where no cell is left."""
    error = np.full(len(labels), np.nan)
    for label in sorted(set(labels)):
        test = [n for n, one in enumerate(labels) if one == label]
        fit = fit_cells(data.of([n for n, one in enumerate(labels) if one != label]), ridges)
        part = data.of(test)
        error[test] = log_seconds(fit, part) - part.log_s
    return error


def held_out(data: LlmSamples) -> dict[str, HeldOut]:
    """Each model left out in turn, and each family: all, plain transformers, recurrent ones, and by unit."""
    found = {}
    unit = np.array([key.split("|")[1] for key in data.unit])
    recurrent = data.layers[:, 1] > 0
    masks = {
        "": np.ones(len(unit), dtype=bool),
        ", transformer": ~recurrent,
        ", recurrent": recurrent,
        **{f", {name}": unit == name for name in ("cpu", "gpu", "npu")},
    }
    for split, labels in (("new model", data.model), ("new family", tuple(family(name) for name in data.model))):
        error = errors(data, labels)
        for name, mask in masks.items():
            kept = mask & ~np.isnan(error)
            found[split + name] = HeldOut(error[kept], tuple(np.array(labels)[kept].tolist()), kept[kept])
    return found


def nested_llm() -> list[dict[str, Any]]:
    """Errors of models held out from the choice of the ridges as well as from the fit."""
    figures = []
    for phase, column in PHASES.items():
        rows = [row for row in tables.rows("llm.csv") if row[column] and float(row[column]) > 0]
        data = samples(backbone(rows), phase, column)
        for split, labels in (("model", data.model), ("family", tuple(family(name) for name in data.model))):
            error = np.full(len(labels), np.nan)
            for label in sorted(set(labels)):
                rest, test = ([n for n, one in enumerate(labels) if (one == label) is out] for out in (False, True))
                inner = data.of(rest)
                names = [labels[n] for n in rest]
                ridges = min(MENU, key=lambda one: float(np.nanmedian(np.abs(errors(inner, names, one)))))
                part = data.of(test)
                error[test] = log_seconds(fit_cells(inner, ridges), part) - part.log_s
            kept = error[~np.isnan(error)]
            figures.append(
                {
                    "class": f"llm {phase}",
                    "split": f"new {split}",
                    "rows": len(kept),
                    "mdape": round(crossval.mdape(kept), 1),
                    "within_1.5x": round(crossval.within(kept, 1.5)),
                }
            )
    return figures


def other_runtimes(rows: Sequence[Row], phase: str, column: str, extra: tuple[float, float]) -> dict[str, list[float]]:
    """Log seconds for each 10^9 parameters by device, unit, runtime and width, and how many rows say so."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if not row["runtime"].startswith(BACKBONE):
            found.setdefault(_run(row), []).append(_cost(row, phase, column, extra))
    return {key: [round(float(np.median(values)), 4), len(values)] for key, values in sorted(found.items())}


def other_sizes(rows: Sequence[Row], phase: str, column: str, extra: tuple[float, float]) -> HeldOut:
    """Each model of other applications left out, told from the others on its device, unit, build and quantization."""
    runs: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if not row["runtime"].startswith(BACKBONE) and long_enough(row, phase):
            runs.setdefault(_run(row), {}).setdefault(row["model"], []).append(_cost(row, phase, column, extra))
    error, models = [], []
    for run in (run for run in runs.values() if len(run) > 1):
        for model, costs in run.items():
            rest = [cost for other, theirs in run.items() if other != model for cost in theirs]
            error.append(float(np.median(rest) - np.median(costs)))
            models.append(model)
    return HeldOut(np.array(error), tuple(models), np.ones(len(error), dtype=bool))


def _run(row: Row) -> str:
    """Device, unit, build and quantization."""
    return f"{unit_key(row)}|{build_of(row['runtime'])}|{quant_of(row['quant'])}"


def long_enough(row: Row, phase: str) -> bool:
    """A prompt of a few tokens is decoded rather than prefilled: its rate is not one of prefill."""
    return phase == "decode" or (tables.number(row["pp_tokens"]) or SHORT_PROMPT) >= SHORT_PROMPT


def quant_effects(fit: LlmFit) -> dict[str, float]:
    """How much slower a quantization is than its unit's others, by kind of unit: for cells nobody measured."""
    away: dict[str, list[float]] = {}
    for key in sorted({key for key, _ in fit.cells}):
        mine = {quant: value for (unit, quant), value in fit.cells.items() if unit == key}
        for quant, value in mine.items():
            away.setdefault(f"{key.split('|')[1]}|{quant}", []).append(value - float(np.mean(list(mine.values()))))
    return {key: round(float(np.mean(values)), 4) for key, values in sorted(away.items())}


def _size(row: Row) -> float | None:
    try:
        return llm_features(workload(row)).decode_b
    except SpecError:
        return None


def _cost(row: Row, phase: str, column: str, extra: tuple[float, float]) -> float:
    """Log seconds for 10^9 parameters, where layers cost `extra` parameters."""
    one = llm_features(workload(row))
    work = amount(one, phase) + (extra[0] * one.layers + extra[1] * one.recurrent_layers) / LAYERS_IN
    return -float(np.log(float(row[column]))) - float(np.log(work))


def _bits() -> dict[str, float]:
    """Bits for each parameter by quantization, the second copy of a tied output layer apart."""
    found: dict[str, list[float]] = {}
    for row in tables.rows("llm.csv"):
        if row["file_mb"] and row["params_b"] and row["runtime"].startswith(BACKBONE):
            one = llm_features(workload(row))
            rest = float(row["file_mb"]) / 1e3 - one.tied * one.embedding_b * 8.5 / 8
            found.setdefault(quant_of(row["quant"]), []).append(rest * 8 / one.params_b)
    bits = {quant: round(float(np.median(values)), 2) for quant, values in sorted(found.items())}
    return {**bits, "w4": 4.5, "w8": 8.5, "f16": 16.0, "f32": 32.0}


def _ends(held: HeldOut) -> list[float]:
    return rounded(interval(held.error, held.key))


def _both(held: Mapping[str, HeldOut], unit: str) -> list[float]:
    """The interval of a unit: models of known and of new families alike, as a user's model may be either."""
    both = [held[f"{split}, {unit}"] for split in ("new model", "new family")]
    return rounded(interval(np.concatenate([one.error for one in both]), both[0].key + both[1].key))
