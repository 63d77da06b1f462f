"""One class: positive coefficients with a shape that groups share, and a speed for each group.

    ms = exp(speed of the group) * sum over terms of exp(shape + the group's own deviation) * amount

All coefficients are exponentials, so none is negative. Minimised is the pseudo-Huber loss of log(ms), a ridge on the
deviations: groups of few rows keep the shape of the class. Gauss-Newton, as the model is smooth and small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgedistill.predict.calibrate.samples import Floats, Ints

SPREAD = 0.15  # log error from which a row counts less: outliers are other operators, not noise
ANCHOR_SPREAD = 0.3  # one anchor with an operator that its unit refuses must not scale the others
SHAPE_RIDGE = 2e-4  # for each row: holds terms that the rows do not tell apart
SPEED_RIDGE = 1e-6


@dataclass(frozen=True)
class Fit:
    """Logs of milliseconds for a unit of each term: shape (terms), speed (groups), deviation (groups x terms)."""

    shape: Floats
    speed: Floats
    deviation: Floats

    def log_ms(self, terms: Floats, group: Ints) -> Floats:
        """Predicted log latency."""
        scaled = terms * np.exp(self.shape + self.deviation[group])
        return np.asarray(np.log(scaled.sum(1)) + self.speed[group])


def fit(terms: Floats, log_ms: Floats, group: Ints, groups: int, ridge: float, rounds: int = 4) -> Fit:
    """Fit shape, speeds and deviations; a group without rows keeps speed 0 and deviation 0."""
    count = terms.shape[1]
    positive = [terms[terms[:, k] > 0, k] for k in range(count)]
    start = np.array([log_ms.mean() - np.log(count) - (np.log(p).mean() if p.size else 0.0) for p in positive])
    found = Fit(start.copy(), np.zeros(groups), np.zeros((groups, count)))
    for number in range(rounds):
        for _ in range(25 if number == 0 else 6):
            found = _groups(found, terms, log_ms, group, ridge)
        for _ in range(3):
            found = _shape(found, terms, log_ms, group, start)
    seen = np.unique(group)
    middle = found.deviation[seen].mean(0)  # else a group of which nothing is known would get a shape that no group has
    deviation = np.zeros_like(found.deviation)
    deviation[seen] = found.deviation[seen] - middle
    return Fit(found.shape + middle, found.speed, deviation)


def fit_groups(
    found: Fit, terms: Floats, log_ms: Floats, group: Ints, ridge: float, speed: Floats, trust: float
) -> Fit:
    """Speeds and deviations of groups expected at `speed`, the shape being known: calibration by anchors.

    `trust` is the ridge on the speed: the variance of an anchor over that of the expectation.
    """
    expected = Fit(found.shape, speed.copy(), np.zeros_like(found.deviation))
    for _ in range(30):
        expected = _groups(expected, terms, log_ms, group, ridge, trust, speed, spread=ANCHOR_SPREAD)
    return expected


def _jacobian(
    found: Fit, terms: Floats, log_ms: Floats, group: Ints, spread: float = SPREAD
) -> tuple[Floats, Floats, Floats]:
    """Share of each term, residual and weight of each row."""
    scaled = terms * np.exp(found.shape + found.deviation[group])
    total = scaled.sum(1)
    residual = log_ms - np.log(total) - found.speed[group]
    return scaled / total[:, None], residual, 1 / np.sqrt(1 + (residual / spread) ** 2)


def _groups(
    found: Fit,
    terms: Floats,
    log_ms: Floats,
    group: Ints,
    ridge: float,
    trust: float = SPEED_RIDGE,
    expected: Floats | None = None,
    spread: float = SPREAD,
) -> Fit:
    groups, count = found.deviation.shape
    share, residual, weight = _jacobian(found, terms, log_ms, group, spread)
    rows = np.concatenate([np.ones((len(log_ms), 1)), share], axis=1)
    normal, right = np.zeros((groups, count + 1, count + 1)), np.zeros((groups, count + 1))
    np.add.at(normal, group, weight[:, None, None] * rows[:, :, None] * rows[:, None, :])
    np.add.at(right, group, (weight * residual)[:, None] * rows)
    penalty = np.array([trust, *[ridge] * count])
    away = found.speed if expected is None else found.speed - expected
    now = np.concatenate([away[:, None], found.deviation], axis=1)
    step = np.linalg.solve(normal + np.diag(penalty + 1e-9), (right - penalty * now)[:, :, None])[:, :, 0]
    step = np.clip(step, -1, 1)
    return Fit(found.shape, found.speed + step[:, 0], found.deviation + step[:, 1:])


def _shape(found: Fit, terms: Floats, log_ms: Floats, group: Ints, start: Floats) -> Fit:
    share, residual, weight = _jacobian(found, terms, log_ms, group)
    ridge = SHAPE_RIDGE * len(log_ms)
    normal = (weight[:, None] * share).T @ share + np.diag(np.full(len(start), ridge + 1e-6))
    step = np.linalg.solve(normal, share.T @ (weight * residual) - ridge * (found.shape - start))
    return Fit(found.shape + np.clip(step, -1, 1), found.speed, found.deviation)
