"""What the fits are worth on models and devices they have not seen; the figures that intervals are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgedistill.predict.calibrate.fitted import Fitted, fit_class
from edgedistill.predict.calibrate.samples import Floats, Samples

FOLDS = 20
BLOCKS = 6
EFFECT_ROWS = 0.5  # how many chips the expectation "no effect" is worth, for a model measured elsewhere


@dataclass(frozen=True)
class HeldOut:
    """log(measured / predicted) of held-out rows, with what each was held out by."""

    error: Floats
    key: tuple[str, ...]
    traced: NDArray[np.bool_]
    before: Floats | None = None  # of the same rows without anchors


def folds(labels: Sequence[str], count: int) -> list[NDArray[np.bool_]]:
    """Masks that split rows by label into at most `count` parts of about equal size; the same for the same labels."""
    sizes = {label: labels.count(label) for label in sorted(set(labels))}
    parts: list[list[str]] = [[] for _ in range(min(count, len(sizes)))]
    filled = [0] * len(parts)
    for label in sorted(sizes, key=lambda name: (-sizes[name], name)):
        where = filled.index(min(filled))
        parts[where].append(label)
        filled[where] += sizes[label]
    array = np.array(labels)
    return [np.isin(array, part) for part in parts]


def unseen_models(data: Samples, by_family: bool) -> HeldOut:
    """Models held out, devices calibrated."""
    labels = data.family if by_family else data.model
    error = np.zeros(len(data.log_ms))
    for out in folds(labels, FOLDS if by_family else 2 * FOLDS):
        error[out] = data.log_ms[out] - fit_class(data, ~out).fit.log_ms(data.terms[out], data.group[out])
    return HeldOut(error, labels, data.traced)


def unseen_cells(data: Samples) -> HeldOut:
    """A model that other chips have measured, on a calibrated chip that has not: terms and the model's own effect."""
    error = np.full(len(data.log_ms), np.nan)
    for chip in folds(data.soc, BLOCKS):
        for model in folds(data.model, 5):
            out = chip & model
            if out.any():
                found = fit_class(data, ~out)
                effect = model_effects(data, ~out, found)
                shift = np.array([effect.get(name, 0.0) for name in data.model])
                error[out] = (data.log_ms - shift - found.fit.log_ms(data.terms, data.group))[out]
    there = ~np.isnan(error)
    return HeldOut(error[there], kept(data.model, error), data.traced[there])


def model_effects(data: Samples, train: NDArray[np.bool_], found: Fitted) -> dict[str, float]:
    """How much slower than its terms each model runs, over all chips that measured it; drawn to 0 where few did."""
    error = data.log_ms - found.fit.log_ms(data.terms, data.group)
    effects = {}
    for model in sorted(set(np.array(data.model)[train].tolist())):
        rows = train & (np.array(data.model) == model)
        chips = sorted(set(np.array(data.soc)[rows].tolist()))
        medians = [float(np.median(error[rows & (np.array(data.soc) == chip)])) for chip in chips]
        effects[model] = float(np.median(medians)) * len(chips) / (len(chips) + EFFECT_ROWS)
    return effects


def mdape(error: Floats) -> float:
    """Median absolute percentage error of the prediction, from log(measured / predicted)."""
    return float(100 * np.median(np.abs(np.expm1(-error))))


def within(error: Floats, factor: float) -> float:
    """Percentage of predictions within a factor of the measurement."""
    return float(100 * np.mean(np.abs(error) <= np.log(factor) + 1e-12))


def kept(labels: Sequence[str], error: Floats) -> tuple[str, ...]:
    """The labels of the rows that have an error."""
    return tuple(label for label, one in zip(labels, error, strict=True) if not np.isnan(one))
