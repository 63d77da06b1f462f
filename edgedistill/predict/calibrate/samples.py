"""The measurements of each class as arrays: which can be fitted, with which features, in which group."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np
from numpy.typing import NDArray

from edgedistill.predict import tables
from edgedistill.predict.classes import CLASSES, COLLECTED, LAYERS_TOLD, TERMS, LatencyClass, class_of, precision_of
from edgedistill.predict.devices import of_name
from edgedistill.predict.features import Features, facts, feature_tables, features, find_row
from edgedistill.predict.specs import Workload

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DELEGATED_FROM = 0.85  # a row that runs less than this on its unit is another unit's row
FITTED_SOURCES = re.compile(r"^(?!.*(mlcommons|ml-stable-diffusion))")


@dataclass(frozen=True)
class Samples:
    """One class: for each row its terms, log latency, group, model, family and chip."""

    one: LatencyClass
    terms: Floats  # rows x terms
    log_ms: Floats
    group: Ints
    groups: tuple[str, ...]
    model: tuple[str, ...]
    family: tuple[str, ...]
    soc: tuple[str, ...]
    traced: NDArray[np.bool_]

    @property
    def unit(self) -> str:
        """cpu, gpu or npu."""
        unit = self.one.name.split()[1]
        return unit if unit in ("cpu", "gpu") else "npu"

    @cached_property
    def facts(self) -> list[dict[str, float]]:
        """What is known of each group: rates and flags of its device, its build."""
        found, idle = [], "fp16" if "int8" in self.one.name else "dot"  # instructions that the class does not use
        for name in self.groups:
            device, build, threads, mode = name.split("|")
            facts = of_name(device).descriptors(self.unit, int(threads), mode)
            facts.pop(idle, None)
            found.append({**facts, f"build:{build}": 1.0})
        return found

    def group_soc(self) -> list[str]:
        """The chip of each group."""
        return [of_name(name.split("|")[0]).soc for name in self.groups]


def threads_of(text: str) -> int:
    """`4` -> 4; `all big` and `multi`: 4, as the devices that say so have four fast cores."""
    return int(text) if text.isdigit() else (4 if text else 1)


def group_of(row: Mapping[str, str]) -> str:
    """Device, build, threads and core choice, as one key."""
    build = row["runtime"].lower().split(" ")[0]
    return "|".join((row["device"], build, str(threads_of(row["threads"])), row["mode"]))


def usable(row: Mapping[str, str]) -> str:
    """The class of a row that can be fitted, else an empty string."""
    source = tables.rows("sources.csv")[int(row["source"])]["source"]
    if row["other_layers"] or not FITTED_SOURCES.match(source) or "sparse" in row["model"]:
        return ""
    if row["nodes"]:
        done, total = row["nodes"].split("/")
        if int(done) < DELEGATED_FROM * int(total):
            return ""
    if precision_of(row["precision"]) == "dynamic_int8" or "mixed" in row["precision"]:
        return ""
    if row["runtime"] == "onnx" and row["unit"] == "cpu":
        return ""  # what AI Hub runs on a CPU are graphs its NPU refused
    device = of_name(row["device"])
    if row["unit"] == "npu" and row["runtime"] == "TFLite" and "tensor" not in device.soc:
        return ""  # NNAPI on an old phone: the unit that ran is not known
    return class_of(row["runtime"], row["unit"], row["precision"], f"{row['chipset']} {device.soc}")


def all_samples(impute: Mapping[str, Mapping[str, float]], *, every_term: bool = False) -> dict[str, Samples]:
    """Every class that has rows with features, in the order of `CLASSES`; with all terms where asked for."""
    rows: dict[str, list[tuple[Mapping[str, str], Features]]] = {name: [] for name in CLASSES}
    for row in tables.rows("latency.csv"):
        name = usable(row)
        if name and find_row(row["model"].removesuffix("_int8"), CLASSES[name]):
            work = Workload(model=row["model"].removesuffix("_int8"))
            found = features(work, CLASSES[name], impute, row)
            if found is not None:
                rows[name].append((row, found))
            if found is not None and CLASSES[name].compiled:
                told = features(work, CLASSES[name], impute, {**row, "layers": ""})
                rows[f"{name}{LAYERS_TOLD}"] += [(row, told)] if told is not None else []
    classes = {name: one._replace(terms=TERMS) if every_term else one for name, one in CLASSES.items()}
    return {name: _samples(classes[name], found) for name, found in rows.items() if found}


def _samples(one: LatencyClass, rows: list[tuple[Mapping[str, str], Features]]) -> Samples:
    keys = [group_of(row) for row, _ in rows]
    groups = tuple(sorted(set(keys)))
    number = {key: n for n, key in enumerate(groups)}
    models = tuple(_model(row["model"], one) for row, _ in rows)
    return Samples(
        one=one,
        terms=np.array([found.terms(one.terms) for _, found in rows]),
        log_ms=np.array([log(float(row["ms"])) for row, _ in rows]),
        group=np.array([number[key] for key in keys]),
        groups=groups,
        model=models,
        family=tuple(facts(model).get("family") or model for model in models),
        soc=tuple(of_name(row["device"]).soc for row, _ in rows),
        traced=np.array([set(found.imputed) <= {"pixels", "layers"} for _, found in rows]),
    )


def _model(name: str, one: LatencyClass) -> str:
    found = find_row(name.removesuffix("_int8"), one)
    return found["key"] if found else name


def fit_imputation() -> dict[str, dict[str, float]]:
    """What a missing feature is told from: log-linear, least squares, over the models whose features are known.

    Layers of a compiled graph from those of the model: rows of Qualcomm's NPU.
    """
    tables_known = [found for name, found in feature_tables().items() if name != COLLECTED]  # few models, many widths
    known = [row for found in tables_known for row in found.values() if row["act_out_m"] and row["gmacs"]]
    basis = {
        "one": [1.0] * len(known),
        "gmacs": [log(float(row["gmacs"])) for row in known],
        "transformer": [float(facts(row["key"]).get("transformer") == "1") for row in known],
        "params_m": [log(float(row["params_m"])) for row in known],
        "n_ops": [log(float(row["n_ops"])) for row in known],
    }
    activations = [log(float(row["act_in_m"]) + float(row["act_out_m"])) for row in known]
    found = {
        "params_m": _least_squares(basis, ("one", "gmacs", "transformer"), basis["params_m"]),
        "n_ops": _least_squares(basis, ("one", "params_m", "transformer"), basis["n_ops"]),
        "activations_m": _least_squares(basis, ("one", "gmacs", "params_m", "transformer"), activations),
        "pixels": {"one": log(224.0**2)},
    }
    return {**found, "layers": _layers()}


def _layers() -> dict[str, float]:
    one = CLASSES["qualcomm npu float"]
    seen: dict[tuple[str, str], list[float]] = {}
    for row in tables.rows("latency.csv"):
        if row["layers"] and row["unit"] == "npu" and (found := find_row(row["model"], one)) and found["n_ops"]:
            seen.setdefault((row["model"], row["precision"]), []).append(float(row["layers"]))
    models = [find_row(model, one) or {} for model, _ in seen]
    basis = {
        "one": [1.0] * len(models),
        "n_ops": [log(float(row["n_ops"])) for row in models],
        "transformer": [float(facts(row["key"]).get("transformer") == "1") for row in models],
        "params_m": [log(float(row["params_m"])) for row in models],
    }
    return _least_squares(basis, ("one", "n_ops", "transformer"), [log(float(np.median(v))) for v in seen.values()])


def _least_squares(basis: Mapping[str, list[float]], names: tuple[str, ...], wanted: list[float]) -> dict[str, float]:
    matrix = np.array([basis[name] for name in names]).T
    solved = np.linalg.lstsq(matrix, np.array(wanted), rcond=None)[0]
    return {name: round(float(value), 5) for name, value in zip(names, solved, strict=True)}
