"""The whole calibration: tables in, coefficients and the table of cross-validated errors out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.predict import tables
from edgedistill.predict.calibrate import resources
from edgedistill.predict.calibrate.latency import latency
from edgedistill.predict.calibrate.llm import llm
from edgedistill.predict.calibrate.reduce import reduce
from edgedistill.predict.calibrate.samples import fit_imputation

COLUMNS = (
    "class", "split", "rows", "keys", "mdape", "mdape_traced", "mdape_before", "within_1.5x", "within_2x",
    "coverage_80", "coverage_95_sure", "width",
)  # fmt: skip
HEAD = (
    "class",
    "held out",
    "rows",
    "chips or models",
    "MdAPE %",
    "of it traced %",
    "same rows, 0 anchors %",
    "within x1.5 %",
    "within x2 %",
    "80% interval covers %",
    "95% sure, %",
    "median high / low",
)


def calibrate(raw: Path | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Fit everything; with `raw`, first rewrite the shipped tables from the published ones in that folder.

    Deterministic: no random number is drawn. Returns the coefficients and the rows of the table of errors.
    """
    if raw is not None:
        reduce(raw, tables.DATA)
        tables.rows.cache_clear()
    impute = fit_imputation()
    speed, figures = latency(impute)
    language, language_figures = llm()
    memory, memory_figures = resources.memory(impute)
    load, load_figures = resources.load(impute)
    energy, energy_figures = resources.energy()
    found = {
        "schema_version": tables.SCHEMA_VERSION,
        "impute": impute,
        "latency": speed,
        "llm": language,
        "memory": memory,
        "load": load,
        "energy": energy,
        "int8_gain": int8_gain(),
    }
    return found, [*figures, *language_figures, *memory_figures, *load_figures, *energy_figures]


def int8_gain() -> dict[str, dict[str, float]]:
    """How much faster a model runs in int8, by runtime and unit: median and 10 to 90 % of pairs on one device."""
    pairs: dict[str, list[float]] = {}
    base: dict[tuple[str, ...], float] = {}
    for wanted in ("float", "other"):
        for row in tables.rows("latency.csv"):
            kind = row["precision"].lower()
            plain = kind in ("float", "fp32", "fp16")
            model = (
                row["model"].removesuffix("_int8").removesuffix("_int8_channelwise").removesuffix("_dynamic_wi8_afp32")
            )
            key = (model, row["runtime"], row["unit"], row["device"], row["threads"], row["mode"], row["release"])
            if wanted == "float" and plain and model == row["model"]:
                base.setdefault(key, float(row["ms"]))
            elif wanted == "other" and not plain and key in base and "mixed" not in kind:
                name = f"{row['runtime'].lower().split(' ')[0]} {row['unit']} {kind.replace(' ', '_')}"
                pairs.setdefault(name, []).append(base[key] / float(row["ms"]))
    return {
        name: {
            "median": round(float(np.median(values)), 3),
            "p10": round(float(np.quantile(values, 0.1)), 3),
            "p90": round(float(np.quantile(values, 0.9)), 3),
            "slower_percent": round(100 * float(np.mean(np.array(values) < 1))),
            "pairs": len(values),
        }
        for name, values in sorted(pairs.items())
    }


def written(coefficients: dict[str, Any]) -> str:
    """The text of the shipped file: one line for each class and group, so that a change can be read."""
    return json.dumps(coefficients, sort_keys=True, separators=(",", ":")).replace("},", "},\n") + "\n"


def table(figures: list[dict[str, Any]]) -> str:
    """The errors as Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * 2}{'--:|' * (len(HEAD) - 2)}"]
    lines += [f"| {' | '.join(_cell(row, column) for column in COLUMNS)} |" for row in figures]
    return "\n".join(lines) + "\n"


def simpler(figures: list[dict[str, Any]]) -> str:
    """What simpler models reach on the same rows, as Markdown."""
    lines = ["| class | rows | this model, MdAPE % | simpler models, MdAPE % |", "|---|--:|--:|---|"]
    for row in figures:
        if "simpler" in row:
            others = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row["simpler"].items())
            lines.append(f"| {row['class']} | {row['rows']} | {row['mdape']} | {others} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if column == "coverage_95_sure" and value is not None:
        return f"{value[0]} to {value[1]}"
    return "" if value is None else f"{value}{' (few)' if column == 'coverage_80' and row['few'] else ''}"
