"""What a class is worth on chips it has not seen, with and without a user's own measurements on them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgedistill.predict.calibrate.crossval import HeldOut, folds, kept, model_effects
from edgedistill.predict.calibrate.fitted import Fitted, fit_class
from edgedistill.predict.calibrate.samples import Floats, Samples
from edgedistill.predict.update import ROUNDS, SPREAD, TERM_TRUST, TRUST

BLOCKS = 6
MODEL_FOLDS = 5
ANCHORS = (0, 3, 5)
KINDS = ("new model", "new model, anchors known", "known model")
Mask = NDArray[np.bool_]


def unseen_devices(data: Samples) -> dict[tuple[str, int], HeldOut]:
    """Chips held out: for models that are new as well, and for models that other chips have measured.

    With anchors, so many other models of the device are measured first, spread over the sizes, and change the
    prediction as `calibrate_device` does. Anchors are new as well, or (`anchors known`) models that other chips have
    measured, so that what is odd about them is known. A group that has not that many other models tells nothing.
    Keys: kind of model, anchors.
    """
    none = np.zeros(len(data.log_ms))
    found = {(kind, count): none + np.nan for kind in KINDS for count in ANCHORS}
    models = folds(data.model, MODEL_FOLDS)
    for chip in folds(data.soc, BLOCKS):
        known = fit_class(data, ~chip)
        _judge(data, known, _effects(data, ~chip, known), chip, chip, found, "known model")
        for model in models:
            out = chip & model
            if out.any():
                train = ~chip & ~model
                fitted = fit_class(data, train)
                _judge(data, fitted, none, chip, out, found, "new model")
                _judge(data, fitted, _effects(data, train, fitted), chip, out, found, "new model, anchors known")
    before = {kind: found[kind, 0] for kind in KINDS}
    if data.unit == "npu":  # without a rate there is nothing to scale by; such a device is flagged
        bare = np.array(["compute" not in facts for facts in data.facts])[data.group]
        for kind in KINDS:
            found[kind, 0] = np.where(bare, np.nan, found[kind, 0])
    return {
        (kind, count): _held(data, error, before[kind] if count else None)
        for (kind, count), error in found.items()
        if (kind, count) != ("new model, anchors known", 0)
    }


def _held(data: Samples, error: Floats, before: Floats | None) -> HeldOut:
    there = ~np.isnan(error)
    return HeldOut(error[there], kept(data.soc, error), data.traced[there], None if before is None else before[there])


def _effects(data: Samples, train: Mask, found: Fitted) -> Floats:
    """By row, how much slower than its terms its model runs on other chips; 0 where none has run it."""
    effects = model_effects(data, train, found)
    return np.array([effects.get(model, 0.0) for model in data.model])


def _judge(
    data: Samples,
    fitted: Fitted,
    shift: Floats,
    chip: Mask,
    out: Mask,
    found: dict[tuple[str, int], Floats],
    kind: str,
) -> None:
    """Errors of the rows `out` of a chip, for every number of anchors among its other models."""
    told, names = fitted.told_fit(), np.array(data.model)
    parts = told.parts(data.terms, data.group) * np.exp(shift)[:, None]
    found[kind, 0][out] = (data.log_ms - np.log(parts.sum(1)))[out]
    for count in ANCHORS[1:]:
        tests, anchors = [], []
        for n in np.flatnonzero(out):
            rows = np.flatnonzero(chip & (data.group == data.group[n]) & (names != names[n]))
            picked = pick_anchors(data, rows, count)
            if picked.size:
                tests.append(n)
                anchors.append(picked)
        if tests:
            speed, terms = updates(parts[np.array(anchors)], data.log_ms[np.array(anchors)])
            changed = np.log((parts[tests] * np.exp(terms)).sum(1)) + speed
            found[kind, count][tests] = data.log_ms[tests] - changed


def updates(parts: Floats, log_ms: Floats) -> tuple[Floats, Floats]:
    """`predict.update` for many devices at once: predicted terms (devices x anchors x terms) and log of measured ms
    (devices x anchors) to changes of the speed (devices) and of the terms (devices x terms).
    """
    devices, _, terms = parts.shape
    change = np.zeros((devices, terms + 1))
    trust = np.array([TRUST, *[TERM_TRUST] * terms])
    for _ in range(ROUNDS):
        scaled = parts * np.exp(change[:, None, 1:])
        total = scaled.sum(2)
        residual = log_ms - np.log(total) - change[:, :1]
        weight = 1 / np.sqrt(1 + (residual / SPREAD) ** 2)
        slopes = np.concatenate([np.ones_like(total)[:, :, None], scaled / total[:, :, None]], axis=2)
        normal = np.einsum("da,dai,daj->dij", weight, slopes, slopes) + np.diag(trust)
        right = np.einsum("da,dai->di", weight * residual, slopes) - trust * change
        change = change + np.clip(np.linalg.solve(normal, right[:, :, None])[:, :, 0], -1, 1)
    return change[:, 0], change[:, 1:]


def pick_anchors(data: Samples, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Rows at the quantiles of multiply-accumulates: what a user would be told to measure."""
    work = data.terms[rows, data.one.terms.index("macs_ms")]
    rows = rows[np.lexsort((rows, work))]
    if len(rows) < count:
        return rows[:0]
    return np.asarray(rows[np.round((np.arange(count) + 0.5) / count * len(rows) - 0.5).astype(int)])
