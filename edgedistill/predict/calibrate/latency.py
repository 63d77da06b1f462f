"""The latency part of the coefficients: for each class its fit, what spec sheets say, model effects and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np

from edgedistill.predict import tables
from edgedistill.predict.calibrate import crossval
from edgedistill.predict.calibrate.crossval import HeldOut
from edgedistill.predict.calibrate.samples import Floats, Samples, all_samples
from edgedistill.predict.calibrate.speeds import slopes, typical_speed

ENOUGH = 40  # held-out rows from which imputed features get an interval of their own
FEW_CHIPS, FEW_CHIPS_WIDER = 8, 1.25  # intervals made of fewer chips cover a next chip 54 to 74 % of the time, not 80
NARROWEST = 0.05  # log units: no class of published rows repeats better (their noise floor)


def latency(impute: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Coefficients of each class, and the cross-validated errors as rows of a table."""
    found, figures = {}, []
    for name, data in all_samples(impute).items():
        held = held_out(data)
        found[name] = one_class(data, held)
        figures += [figure(name, split, errors) for split, errors in held.items()]
    return {"classes": found, "exact": exact_interval()}, figures


def held_out(data: Samples) -> dict[str, HeldOut]:
    """Every split of a class that has enough models and chips for it, by name."""
    held = {"new model": crossval.unseen_models(data, False), "new family": crossval.unseen_models(data, True)}
    if len(set(data.soc)) < 2:
        return held
    held["known model, chip has not run it"] = crossval.unseen_cells(data)
    for anchors in (0, 3, 5):
        for kind, errors in crossval.unseen_devices(data, anchors).items():
            if len(errors.error) >= 10:
                held[f"new chip, {kind}, {anchors} anchors"] = errors
    return held


def one_class(data: Samples, held: Mapping[str, HeldOut]) -> dict[str, Any]:
    """Everything a prediction of the class needs."""
    every = np.ones(len(data.log_ms), dtype=bool)
    found = crossval.fit_samples(data, every)
    effects = crossval.model_effects(data, every, found)
    socs = data.group_soc()
    unit = data.one.name.split()[1] if data.one.name.split()[1] in ("cpu", "gpu") else "npu"
    positive = [data.terms[data.terms[:, k] > 0, k] for k in range(data.terms.shape[1])]
    return {
        "terms": list(data.one.terms),
        "shape": _rounded(found.shape),
        "groups": {
            name: {
                "speed": round(float(found.speed[g]), 4),
                "deviation": _rounded(found.deviation[g]),
                "rows": int((data.group == g).sum()),
            }
            for g, name in enumerate(data.groups)
        },
        "slopes": {
            k: round(v, 4) for k, v in slopes(data.groups, socs, typical_speed(found, data.terms), unit).items()
        },
        "effects": {name: round(value, 4) for name, value in effects.items()},
        "range": [[round(float(p.min()), 6), round(float(p.max()), 6)] if p.size else [0.0, 0.0] for p in positive],
        "intervals": intervals(held),
        "anchors": {"trust": crossval.ANCHOR_TRUST},
    }


def intervals(held: Mapping[str, HeldOut]) -> dict[str, dict[str, list[float]]]:
    """By level: low and high as log factors on the median, for traced and for told features."""
    together = HeldOut(
        np.concatenate([held["new model"].error, held["new family"].error]),
        (),
        np.concatenate([held["new model"].traced, held["new family"].traced]),
    )
    found = {"fitted": _pair(together)}
    names = {
        "scaled": "known model, chip has not run it",
        "spec only": "new chip, new model, 0 anchors",
        "spec only, known model": "new chip, known model, 0 anchors",
        "calibrated": "new chip, new model, 3 anchors",
        "calibrated, known model": "new chip, known model, 3 anchors",
    }
    return {**found, **{level: _pair(held[name], "new chip" in name) for level, name in names.items() if name in held}}


def exact_interval() -> list[float]:
    """How far a row repeats: the same model, precision, runtime and device in two releases of Qualcomm AI Hub."""
    key = ("model", "precision", "runtime", "device", "unit")
    rows = sorted((row for row in tables.rows("latency.csv") if row["release"]), key=lambda row: [row[k] for k in key])
    apart = []
    for _, same in groupby(rows, key=lambda row: [row[k] for k in key]):
        values = [float(row["ms"]) for row in same]
        apart += [float(np.log(value / values[0])) for value in values[1:]]
    if len(apart) < 10:  # one release only: 90 % of repeats lie within x1.25
        return [-0.15, 0.15]
    low, high = crossval.quantiles(np.array(apart + [-value for value in apart]))
    return [round(min(low, -NARROWEST), 4), round(max(high, NARROWEST), 4)]


def figure(name: str, split: str, held: HeldOut) -> dict[str, Any]:
    """A row of the table of cross-validated errors."""
    traced = held.error[held.traced]
    return {
        "class": name,
        "split": split,
        "rows": len(held.error),
        "mdape": round(crossval.mdape(held.error), 1),
        "mdape_traced": round(crossval.mdape(traced), 1) if traced.size else None,
        "within_1.5x": round(crossval.within(held.error, 1.5)),
        "within_2x": round(crossval.within(held.error, 2.0)),
        "coverage_80": _percent(crossval.coverage(held)),
    }


def _pair(held: HeldOut, by_chip: bool = False) -> dict[str, list[float]]:
    widen = FEW_CHIPS_WIDER if by_chip and len(set(held.key)) < FEW_CHIPS else 1.0
    every = crossval.quantiles(held.error)
    told, traced = held.error[~held.traced], held.error[held.traced]
    found = {"traced": crossval.quantiles(traced) if traced.size >= ENOUGH else every}
    found["told"] = crossval.quantiles(told) if told.size >= ENOUGH else every
    return {
        name: [round(widen * min(low, -NARROWEST), 4), round(widen * max(high, NARROWEST), 4)]
        for name, (low, high) in found.items()
    }


def _percent(share: float) -> int | None:
    return None if np.isnan(share) else round(100 * share)


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 4) for value in values]
