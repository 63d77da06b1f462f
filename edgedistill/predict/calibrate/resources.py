"""Memory, first load and energy: few terms each, as their rows are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgedistill.predict import tables
from edgedistill.predict.calibrate import crossval
from edgedistill.predict.calibrate.crossval import HeldOut
from edgedistill.predict.calibrate.fit import fit
from edgedistill.predict.calibrate.intervals import interval, rounded
from edgedistill.predict.calibrate.latency import figure
from edgedistill.predict.calibrate.samples import Floats
from edgedistill.predict.classes import CLASSES, class_of, family_of
from edgedistill.predict.devices import of_name
from edgedistill.predict.features import facts, features, find_row
from edgedistill.predict.specs import Workload

# What LiteRT takes before it holds a model. 26 rows of 11 to 650 MB do not tell 2 from 3 MB; left free, it
# follows the smallest model.
KNOWN_BASE_MB = {"litert cpu": 2.0}
FP32_BYTES = 4.0
Impute = Mapping[str, Mapping[str, float]]
Row = Mapping[str, str]
Table = tuple[dict[str, Any], list[dict[str, Any]]]


def memory(impute: Impute) -> Table:
    """Peak memory: MB = base + per_file x file MB + per_activation x peak activation MB (fp32), by runtime and unit."""
    found: dict[str, Any] = {}
    figures = []
    for name, rows in _memory_rows(impute).items():
        base = KNOWN_BASE_MB.get(name, 0.0)
        amounts = np.array([[1.0, file / 10, peak / 10] for _, file, peak, _ in rows])[:, 1 if base else 0 :]
        values, models = np.array([value for *_, value in rows]), [model for model, *_ in rows]
        if base:
            solved, held = _solve_above(amounts, values, base, models)
            solved = [base, *solved]
        else:
            solved, held = _solve_and_hold_out(amounts, np.log(values), models)
        found[name] = {
            "base_mb": round(solved[0], 3),
            "per_file": round(solved[1] / 10, 4),
            "per_activation": round(solved[2] / 10, 4),
            "interval": _pair(held),
            "rows": len(rows),
        }
        figures.append(_figure(f"memory {name}", held))
    return found, figures


def load(impute: Impute) -> Table:
    """First load: ms = base + per_file x file MB, by runtime and unit, of the two phones that measured it."""
    grouped: dict[str, list[tuple[str, float, float]]] = {}
    for row in tables.rows("latency.csv"):
        if row["init_ms"] and row["size_mb"] and family_of(row["runtime"]) == "litert":
            grouped.setdefault(f"litert {row['unit']}", []).append(
                (row["model"], float(row["size_mb"]), float(row["init_ms"]))
            )
    found, figures = {}, []
    for name, rows in sorted(grouped.items()):
        amounts = np.array([[1.0, size / 10] for _, size, _ in rows])
        solved, held = _solve_and_hold_out(amounts, np.log([ms for *_, ms in rows]), [model for model, *_ in rows])
        found[name] = {"base_ms": round(solved[0], 3), "per_file": round(solved[1] / 10, 4), "interval": _pair(held)}
        figures.append(_figure(f"first load {name}", held))
    return found, figures


def energy() -> Table:
    """Power of a whole phone under load, as factors of time; energy of a multiply-accumulate as a cross-check.

    Vision: Monsoon traces of one phone, 1.24 to 2.15 W (PlatformX), and mJ for each 10^6 MACs of DeepEn2023. Language:
    battery gauges, 4 to 7 W. Rows marked suspect, wall power and single rails are left out: they are other scopes.
    """
    rows = tables.rows("energy.csv")
    language = [
        row
        for row in rows
        if row["kind"] == "LLM decode"
        and row["scope"].startswith("whole phone")
        and "suspect" not in row["quality"]
        and row["avg_power_w"]
    ]
    vision = [float(row["avg_power_w"]) for row in rows if row["kind"] == "vision inference" and row["avg_power_w"]]
    per_mac = {
        unit.lower(): [float(row["nj_per_flop"]) for row in rows if row["nj_per_flop"] and row["backend"] == unit]
        for unit in ("CPU", "GPU")
    }
    power = np.log([float(row["avg_power_w"]) for row in language])
    held = HeldOut(power - np.median(power), tuple(row["model"] for row in language), np.ones(len(power), dtype=bool))
    figures = [_figure("power of language models, whole phone", held)]
    mac_figures = []
    for unit, values in per_mac.items():
        logs = np.log(values)
        apart = np.array([one - np.median(np.delete(logs, n)) for n, one in enumerate(logs)])
        mac_figures.append(
            _figure(f"energy per MAC, {unit}", HeldOut(apart, tuple(map(str, range(len(apart)))), logs < 9))
        )
    found = {
        "llm_w": {"median": round(float(np.exp(np.median(power))), 3), "interval": _pair(held), "rows": len(language)},
        "vision_w": {
            "median": round(float(np.exp(np.mean(np.log(vision)))), 3),
            "low": min(vision),
            "high": max(vision),
            "rows": len(vision),
        },
        "per_mmac_mj": {unit: round(float(np.median(values)), 4) for unit, values in per_mac.items()},
        # iPhone 17 Pro: 0.64 to 0.76 of the burst rate; Galaxy S25 Ultra on its CPU: 37 -> 19 tokens/s
        "sustained": {"median": 0.7, "low": 0.51, "high": 0.76},
    }
    return found, [*figures, *mac_figures]


def _memory_rows(impute: Impute) -> dict[str, list[tuple[str, float, float, float]]]:
    """By runtime and unit: model, file MB, peak activation MB, measured MB; one row for each model and device."""
    found: dict[str, list[tuple[str, float, float, float]]] = {}
    for row in tables.rows("latency.csv"):
        size, peak = tables.number(row["size_mb"]), tables.number(row["peak_mb"])
        soc = of_name(row["device"]).soc
        name = class_of(row["runtime"], row["unit"], row["precision"], f"{row['chipset']} {soc}")
        if not (size and peak and name) or row["precision"] not in ("fp32", "float") or row["other_layers"]:
            continue
        stored = find_row(row["model"], CLASSES[name])
        if stored is None:
            continue
        one = features(Workload(model=row["model"]), CLASSES[name], impute, row)
        if one is None or one.peak_act_m is None:
            continue
        key = f"{family_of(row['runtime'])} {row['unit']}"
        found.setdefault(key, []).append(
            (facts(stored["key"]).get("key", row["model"]), size, one.peak_act_m * FP32_BYTES, peak)
        )
    return {key: rows for key, rows in sorted(found.items()) if len(rows) >= 20}


def _solve_and_hold_out(amounts: Floats, values: Floats, models: Sequence[str]) -> tuple[list[float], HeldOut]:
    """Positive coefficients of all rows, and errors with each model left out in turn."""
    zero = np.zeros(len(values), dtype=int)
    solved = fit(amounts, values, zero, 1, ridge=1e6)
    error = np.zeros(len(values))
    for out in crossval.folds(models, 40):
        error[out] = values[out] - fit(amounts[~out], values[~out], zero[~out], 1, ridge=1e6).log_ms(
            amounts[out], zero[out]
        )
    coefficients = np.exp(solved.shape + solved.speed[0])
    return [float(value) for value in coefficients], HeldOut(error, tuple(models), np.ones(len(values), dtype=bool))


def _solve_above(amounts: Floats, values: Floats, base: float, models: Sequence[str]) -> tuple[list[float], HeldOut]:
    """Like `_solve_and_hold_out` above a base that is known: the error is that of the whole, in the fit too.

    Least squares: two phones agree on each model to 2 %, so that no row is odd, and a loss that lets far rows count
    less would leave out the one model whose activations are most of it.
    """
    error = np.zeros(len(values))
    for out in crossval.folds(models, 40):
        told = base + amounts[out] @ _least_squares(amounts[~out], values[~out], base)
        error[out] = np.log(values[out] / told)
    solved = _least_squares(amounts, values, base)
    return [float(value) for value in solved], HeldOut(error, tuple(models), np.ones(len(values), dtype=bool))


def _least_squares(amounts: Floats, values: Floats, base: float) -> Floats:
    """Positive coefficients of the amounts that leave the least squares of log(values / whole), by Gauss-Newton."""
    logs = np.log(np.median((values - base)[:, None] / amounts, axis=0) / amounts.shape[1])
    for _ in range(60):
        parts = amounts * np.exp(logs)
        whole = base + parts.sum(1)
        step = np.linalg.lstsq(parts / whole[:, None], np.log(values / whole), rcond=None)[0]
        logs = logs + np.clip(step, -1, 1)
    return np.asarray(np.exp(logs))


def _pair(held: HeldOut) -> list[float]:
    return rounded(interval(held.error, held.key))


def _figure(name: str, held: HeldOut) -> dict[str, Any]:
    return {**figure(name, "new model", held), "mdape_traced": None}
