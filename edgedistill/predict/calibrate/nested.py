"""What the choice of terms and ridge is worth: chosen anew without what is held out, so that it cannot flatter."""

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
from edgedistill.predict.classes import CLASSES, LAYERS_TOLD

Choice = tuple[tuple[str, ...], float]
_BASE = ("macs_ms",)
_TRAFFIC = (("activations_ms",), ("traffic_ms",), ("activations_ms", "weights_ms"), ("reuse_ms",))
_EXTRA: dict[str, tuple[tuple[str, ...], ...]] = {
    "start": ((), ("start_ms",), ("start_ms", "layers_ms")),
    "depthwise": ((), ("depthwise_macs_ms",)),
}
_COMPILED = ("start_ms", "layers_ms", "macs_ms")
_COMPILED_TRAFFIC = (("activations_ms", "weights_ms"), ("reuse_ms",))
_COMPILED_EXTRA = ((), ("input_ms",), ("attention_macs_ms",), ("input_ms", "attention_macs_ms"))
RIDGES = (0.05, 1.0)
OUTER, INNER = 12, 3
FINE_OUTER, FINE_INNER = 30, 6  # of compiled classes of up to 30 models: each model is held out by itself
MOST = float(np.log(2))  # an operator that the unit refuses says nothing of terms: its error counts as a factor of 2


def nested(impute: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """For each class of few rows and each compiled one, errors of what was held out from the choice and from the fit.

    Classes of few rows hold out families; compiled ones models, and their precisions are pooled as well.
    """
    figures, pools = [], dict[str, list[HeldOut]]()
    for name, data in all_samples(impute, every_term=True).items():
        if name.startswith(("litert", "edgetpu", "coreml", "rockchip")):
            figures.append(_figure(name, "new family", _one(name, data, "family")))
        elif data.one.compiled:
            told = f"qualcomm npu, all precisions{LAYERS_TOLD if name.endswith(LAYERS_TOLD) else ''}"
            held = _one(name, data, "model")
            figures.append(_figure(name, "new model", held))
            pools.setdefault(told, []).append(held)
    for name, parts in pools.items():
        error = np.concatenate([one.error for one in parts])
        figures.append(_figure(name, "new model", HeldOut(error, sum((one.key for one in parts), ()), error > 0)))
    return figures


def menu(name: str) -> list[Choice]:
    """Sets of terms that physics allows, with each ridge; classes with penalties always have theirs."""
    if CLASSES[name].compiled:
        sets = [(*_COMPILED, *traffic, *extra) for traffic, extra in product(_COMPILED_TRAFFIC, _COMPILED_EXTRA)]
        return [(terms, CLASSES[name].ridge) for terms in sets]
    penalty = tuple(term for term in CLASSES[name].terms if term == "soft_macs_ms")
    sets = [
        (*start, *_BASE, *depthwise, *traffic, *penalty)
        for start, depthwise, traffic in product(_EXTRA["start"], _EXTRA["depthwise"], _TRAFFIC)
    ]
    return [(terms, ridge) for terms in sets for ridge in RIDGES]


def _one(name: str, data: Samples, split: str) -> HeldOut:
    labels = data.model if split == "model" else data.family
    error = np.zeros(len(data.log_ms))
    fine = data.one.compiled and len(set(labels)) <= FINE_OUTER
    outer, inner = (FINE_OUTER, FINE_INNER) if fine else (OUTER, INNER)
    for out in crossval.folds(labels, outer):
        best = min(menu(name), key=lambda choice: _inner(data, labels, ~out, choice, inner))
        error[out] = _errors(data, ~out, out, best)
    return HeldOut(error, labels, data.traced)


def _figure(name: str, split: str, held: HeldOut) -> dict[str, Any]:
    return {
        "class": name,
        "split": split,
        "rows": len(held.error),
        "mdape": round(crossval.mdape(held.error), 1),
        "within_1.5x": round(crossval.within(held.error, 1.5)),
        "coverage_80": round(100 * intervals.coverage(held)),
    }


def _inner(data: Samples, labels: tuple[str, ...], among: NDArray[np.bool_], choice: Choice, parts: int) -> float:
    """Error of a choice on labels held out of the rows that the choice may see."""
    seen = np.flatnonzero(among)
    errors = []
    for out in crossval.folds(tuple(labels[n] for n in seen), parts):
        test = np.zeros(len(among), dtype=bool)
        test[seen[out]] = True
        errors.append(_errors(data, among & ~test, test, choice))
    error = np.abs(np.concatenate(errors))
    return float(np.minimum(error, MOST).mean() if data.one.compiled else np.median(error))


def _errors(data: Samples, train: NDArray[np.bool_], test: NDArray[np.bool_], choice: Choice) -> NDArray[np.float64]:
    terms, ridge = choice
    picked = replace(data, terms=data.terms[:, [data.one.terms.index(term) for term in terms]])
    rows = picked.terms[train], data.log_ms[train], data.group[train]
    found = fit(*rows, len(data.groups), ridge, rounds=2, odd_rows=data.one.compiled)
    if data.unit == "cpu":
        found = found.with_powers(*rows)
    return np.asarray(data.log_ms[test] - found.log_ms(picked.terms[test], data.group[test]))
