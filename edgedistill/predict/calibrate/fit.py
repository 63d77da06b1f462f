"""One class: positive coefficients with a shape that groups share, and a speed for each group.

    ms = exp(speed of the group) * sum over terms of exp(shape + deviation of the group) * amount

All coefficients are exponentials, so none is negative. Minimised is the pseudo-Huber loss of log(ms) and a ridge on the
deviations, away from what the facts of the group tell (`speeds.py`): groups of few rows keep to those of their kind.
Gauss-Newton, as the model is smooth and small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgedistill.predict.calibrate.samples import Floats, Ints

SPREAD = 0.15  # log error from which a row counts less: outliers are other operators, not noise
SHAPE_RIDGE = 2e-4  # for each row: holds terms that the rows do not tell apart
SPEED_RIDGE = 1e-6
Expect = Callable[[Floats, Ints], Floats]  # deviations and the groups that have rows -> expected deviations of all


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


def fit(
    terms: Floats,
    log_ms: Floats,
    group: Ints,
    groups: int,
    ridge: float,
    rounds: int = 4,
    expect: Expect | None = None,
) -> Fit:
    """Fit shape, speeds and deviations; a group without rows keeps speed 0 and the expected deviation."""
    count = terms.shape[1]
    positive = [terms[terms[:, k] > 0, k] for k in range(count)]
    start = np.array([log_ms.mean() - np.log(count) - (np.log(p).mean() if p.size else 0.0) for p in positive])
    found = Fit(start.copy(), np.zeros(groups), np.zeros((groups, count)))
    expected, seen = np.zeros((groups, count)), np.unique(group)
    for number in range(rounds):
        for _ in range(25 if number == 0 else 6):
            found = _groups(found, terms, log_ms, group, ridge, expected)
        for _ in range(3):
            found = _shape(found, terms, log_ms, group, start)
        if expect is not None and number:
            expected = expect(found.deviation, seen)
    middle = found.deviation[seen].mean(0)  # else a group of which nothing is known would get a shape that no group has
    deviation = expected - expected[seen].mean(0)
    deviation[seen] = found.deviation[seen] - middle
    return Fit(found.shape + middle, found.speed, deviation)


def _jacobian(found: Fit, terms: Floats, log_ms: Floats, group: Ints) -> tuple[Floats, Floats, Floats]:
    """Share of each term, residual and weight of each row."""
    scaled = terms * np.exp(found.shape + found.deviation[group])
    total = scaled.sum(1)
    residual = log_ms - np.log(total) - found.speed[group]
    return scaled / total[:, None], residual, 1 / np.sqrt(1 + (residual / SPREAD) ** 2)


def _groups(found: Fit, terms: Floats, log_ms: Floats, group: Ints, ridge: float, expected: Floats) -> Fit:
    groups, count = found.deviation.shape
    share, residual, weight = _jacobian(found, terms, log_ms, group)
    rows = np.concatenate([np.ones((len(log_ms), 1)), share], axis=1)
    normal, right = np.zeros((groups, count + 1, count + 1)), np.zeros((groups, count + 1))
    np.add.at(normal, group, weight[:, None, None] * rows[:, :, None] * rows[:, None, :])
    np.add.at(right, group, (weight * residual)[:, None] * rows)
    penalty = np.array([SPEED_RIDGE, *[ridge] * count])
    now = np.concatenate([found.speed[:, None], found.deviation - expected], axis=1)
    step = np.linalg.solve(normal + np.diag(penalty + 1e-9), (right - penalty * now)[:, :, None])[:, :, 0]
    step = np.clip(step, -1, 1)
    return Fit(found.shape, found.speed + step[:, 0], found.deviation + step[:, 1:])


def _shape(found: Fit, terms: Floats, log_ms: Floats, group: Ints, start: Floats) -> Fit:
    share, residual, weight = _jacobian(found, terms, log_ms, group)
    ridge = SHAPE_RIDGE * len(log_ms)
    normal = (weight[:, None] * share).T @ share + np.diag(np.full(len(start), ridge + 1e-6))
    step = np.linalg.solve(normal, share.T @ (weight * residual) - ridge * (found.shape - start))
    return Fit(found.shape + np.clip(step, -1, 1), found.speed, found.deviation)
