"""What the choice of terms and ridge is worth: chosen anew without each held-out family, so that it cannot flatter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.predict.calibrate import crossval, intervals
from edgedistill.predict.calibrate.crossval import HeldOut
from edgedistill.predict.calibrate.fit import fit
from edgedistill.predict.calibrate.samples import Samples, all_samples
from edgedistill.predict.classes import CLASSES

_BASE = ("macs_ms",)
_TRAFFIC = (("activations_ms",), ("traffic_ms",), ("activations_ms", "weights_ms"))
_EXTRA: dict[str, tuple[tuple[str, ...], ...]] = {
    "start": ((), ("start_ms",), ("start_ms", "layers_ms")),
    "depthwise": ((), ("depthwise_macs_ms",)),
}
RIDGES = (0.05, 0.3, 1.0)
OUTER, INNER = 12, 6


def nested(impute: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """For each class of few rows, errors of families held out from the choice as well as from the fit."""
    figures = []
    for name, data in all_samples(impute, every_term=True).items():
        if name.startswith(("litert", "edgetpu", "coreml")):
            figures.append(_one(name, data))
    return figures


def menu(name: str) -> list[tuple[tuple[str, ...], float]]:
    """Sets of terms that physics allows, with each ridge; classes with penalties always have theirs."""
    penalty = tuple(term for term in CLASSES[name].terms if term == "soft_macs_ms")
    sets = [
        (*start, *_BASE, *depthwise, *traffic, *penalty)
        for start, depthwise, traffic in product(_EXTRA["start"], _EXTRA["depthwise"], _TRAFFIC)
    ]
    return [(terms, ridge) for terms in sets for ridge in RIDGES]


def _one(name: str, data: Samples) -> dict[str, Any]:
    error = np.zeros(len(data.log_ms))
    for out in crossval.folds(data.family, OUTER):
        terms, ridge = min(menu(name), key=lambda choice: _inner(data, ~out, *choice))
        error[out] = _errors(data, ~out, out, terms, ridge)
    held = HeldOut(error, data.family, data.traced)
    return {
        "class": name, "split": "new family, terms chosen without it", "rows": len(error),
        "mdape": round(crossval.mdape(error), 1), "within_1.5x": round(crossval.within(error, 1.5)),
        "coverage_80": round(100 * intervals.coverage(held)),
    }  # fmt: skip


def _inner(data: Samples, among: NDArray[np.bool_], terms: tuple[str, ...], ridge: float) -> float:
    """Error of a choice on families held out of the rows that the choice may see."""
    labels = tuple(label if mine else "" for label, mine in zip(data.family, among, strict=True))
    errors = []
    for out in crossval.folds(tuple(label for label in labels if label), INNER):
        test = np.zeros(len(among), dtype=bool)
        test[np.flatnonzero(among)[out]] = True
        errors.append(_errors(data, among & ~test, test, terms, ridge))
    return float(np.median(np.abs(np.concatenate(errors))))


def _errors(
    data: Samples, train: NDArray[np.bool_], test: NDArray[np.bool_], terms: tuple[str, ...], ridge: float
) -> NDArray[np.float64]:
    picked = replace(data, terms=data.terms[:, [data.one.terms.index(term) for term in terms]])
    rows = picked.terms[train], data.log_ms[train], data.group[train]
    found = fit(*rows, len(data.groups), ridge, rounds=2)
    if data.unit == "cpu":
        found = found.with_powers(*rows)
    return np.asarray(data.log_ms[test] - found.log_ms(picked.terms[test], data.group[test]))
