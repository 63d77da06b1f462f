"""What the fits are worth on models and devices they have not seen; the figures that intervals are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgedistill.predict.calibrate.fit import Fit, fit, fit_groups
from edgedistill.predict.calibrate.samples import Floats, Samples
from edgedistill.predict.calibrate.speeds import descriptors, expected_speed, slopes, typical_speed

FOLDS = 20
BLOCKS = 6
ANCHOR_TRUST = 0.15  # an anchor's variance over that of the speed told from specifications
ANCHOR_RIDGE = 4.0
EFFECT_ROWS = 0.5  # how many chips the expectation "no effect" is worth, for a model measured elsewhere


@dataclass(frozen=True)
class HeldOut:
    """log(measured / predicted) of held-out rows, with what each was held out by."""

    error: Floats
    key: tuple[str, ...]
    traced: NDArray[np.bool_]


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
        error[out] = data.log_ms[out] - fit_samples(data, ~out).log_ms(data.terms[out], data.group[out])
    return HeldOut(error, labels, data.traced)


def unseen_cells(data: Samples) -> HeldOut:
    """A model that other chips have measured, on a calibrated chip that has not: terms and the model's own effect."""
    error = np.full(len(data.log_ms), np.nan)
    for chip in folds(data.soc, BLOCKS):
        for model in folds(data.model, 5):
            out = chip & model
            if out.any():
                found = fit_samples(data, ~out)
                effect = model_effects(data, ~out, found)
                shift = np.array([effect.get(name, 0.0) for name in data.model])
                error[out] = (data.log_ms - shift - found.log_ms(data.terms, data.group))[out]
    kept = ~np.isnan(error)
    return HeldOut(error[kept], _kept(data.model, error), data.traced[kept])


def unseen_devices(data: Samples, anchors: int) -> dict[str, HeldOut]:
    """Chips held out: for models that are new as well, and for models that other chips have measured.

    With anchors, so many models of the device are measured first, spread over the sizes; errors are of the others.
    """
    unit = data.one.name.split()[1]
    parts = {name: np.full(len(data.log_ms), np.nan) for name in ("new model", "known model")}
    models = folds(data.model, 5)
    for chip in folds(data.soc, BLOCKS):
        parts["known model"][chip] = _chip(data, ~chip, chip, unit, anchors, known=True)[chip]
        for model in models:
            out = chip & model
            if out.any():
                parts["new model"][out] = _chip(data, ~chip & ~model, chip, unit, anchors, known=False, test=out)[out]
    if unit == "npu" and not anchors:  # without a rate there is nothing to scale by; such a device is flagged
        rated = {
            soc for soc, name in zip(data.group_soc(), data.groups, strict=True) if "compute" in descriptors(name, unit)
        }
        for error in parts.values():
            error[~np.isin(np.array(data.soc), sorted(rated))] = np.nan
    return {
        name: HeldOut(error[~np.isnan(error)], _kept(data.soc, error), data.traced[~np.isnan(error)])
        for name, error in parts.items()
    }


def _chip(
    data: Samples,
    train: NDArray[np.bool_],
    chip: NDArray[np.bool_],
    unit: str,
    anchors: int,
    *,
    known: bool,
    test: NDArray[np.bool_] | None = None,
) -> Floats:
    """Errors of the rows of a chip that is not in `train`; rows used as anchors are NaN."""
    found = fit_samples(data, train)
    seen = sorted(set(data.group[train].tolist()))
    socs = data.group_soc()
    told = slopes([data.groups[g] for g in seen], [socs[g] for g in seen], typical_speed(found, data.terms)[seen], unit)
    speed = np.array([expected_speed(told, descriptors(name, unit)) for name in data.groups])
    effect = model_effects(data, train, found) if known else {}
    shift = np.array([effect.get(model, 0.0) for model in data.model])
    group = Fit(found.shape, speed, np.zeros_like(found.deviation))
    used = np.zeros(len(data.log_ms), dtype=bool)
    if anchors:
        used = pick_anchors(data, chip if test is None else chip & ~test, anchors)
        group = fit_groups(
            found,
            data.terms[used],
            data.log_ms[used] - shift[used],
            data.group[used],
            ANCHOR_RIDGE,
            speed,
            ANCHOR_TRUST,
        )
    error = data.log_ms - shift - group.log_ms(data.terms, data.group)
    error[used] = np.nan
    return np.asarray(error)


def pick_anchors(data: Samples, among: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Rows of each group at the quantiles of multiply-accumulates: what a user would be told to measure."""
    used = np.zeros(len(data.log_ms), dtype=bool)
    work = data.terms[:, data.one.terms.index("macs_ms")]
    for group in sorted(set(data.group[among].tolist())):
        rows = np.flatnonzero(among & (data.group == group))
        rows = rows[np.lexsort((rows, work[rows]))]
        if len(rows) > count:
            used[rows[np.unique(np.round((np.arange(count) + 0.5) / count * len(rows) - 0.5).astype(int))]] = True
    return used


def model_effects(data: Samples, train: NDArray[np.bool_], found: Fit) -> dict[str, float]:
    """How much slower than its terms each model runs, over all chips that measured it; drawn to 0 where few did."""
    error = data.log_ms - found.log_ms(data.terms, data.group)
    effects = {}
    for model in sorted(set(np.array(data.model)[train].tolist())):
        rows = train & (np.array(data.model) == model)
        chips = sorted(set(np.array(data.soc)[rows].tolist()))
        medians = [float(np.median(error[rows & (np.array(data.soc) == chip)])) for chip in chips]
        effects[model] = float(np.median(medians)) * len(chips) / (len(chips) + EFFECT_ROWS)
    return effects


def quantiles(error: Floats, share: float = 0.8) -> tuple[float, float]:
    """The central interval of log errors, with the finite-sample step of conformal prediction (n + 1)."""
    tail = (1 - share) / 2
    count = len(error)
    level = min(1.0, (1 - tail) * (count + 1) / count)
    return float(np.quantile(error, 1 - level)), float(np.quantile(error, level))


def coverage(held: HeldOut, share: float = 0.8) -> float:
    """How much of each key's errors lies in the interval made of the other keys': so that nothing covers itself."""
    inside = np.zeros(len(held.error), dtype=bool)
    keys = np.array(held.key)
    for key in sorted(set(held.key)):
        mine = keys == key
        if mine.all():
            return float("nan")
        low, high = quantiles(held.error[~mine], share)
        inside[mine] = (held.error[mine] >= low) & (held.error[mine] <= high)
    return float(inside.mean())


def mdape(error: Floats) -> float:
    """Median absolute percentage error of the prediction, from log(measured / predicted)."""
    return float(100 * np.median(np.abs(np.expm1(-error))))


def within(error: Floats, factor: float) -> float:
    """Percentage of predictions within a factor of the measurement."""
    return float(100 * np.mean(np.abs(error) <= np.log(factor) + 1e-12))


def fit_samples(data: Samples, train: NDArray[np.bool_]) -> Fit:
    """The fit of a class to some of its rows."""
    return fit(data.terms[train], data.log_ms[train], data.group[train], len(data.groups), data.one.ridge)


def _kept(labels: Sequence[str], error: Floats) -> tuple[str, ...]:
    return tuple(label for label, one in zip(labels, error, strict=True) if not np.isnan(one))
