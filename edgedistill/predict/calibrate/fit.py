"""One class: positive coefficients with a shape that groups share, and a speed for each group.

    ms = exp(speed of the group) * sum over terms of exp(shape + deviation of the group) * amount

All coefficients are exponentials, so none is negative. Minimised is the pseudo-Huber loss of log(ms) and a ridge on the
deviations, away from what the facts of the group tell (`speeds.py`): groups of few rows keep to those of their kind.
For compiled graphs it is the Cauchy loss: an operator that the unit refuses makes a model 8 times slower, and tells
nothing of the others. That takes many rows; in the small classes it takes a kind of model for an odd one.
Gauss-Newton, as the model is smooth and small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgedistill.predict.calibrate.powers import Powers, fit_powers
from edgedistill.predict.calibrate.samples import Floats, Ints
from edgedistill.predict.powers import SHARE

SPREAD = 0.15  # log error from which a row counts less: outliers are other operators, not noise
ODD_SPREAD = 0.3  # the same of the Cauchy loss
SHAPE_RIDGE = 2e-4  # for each row: holds terms that the rows do not tell apart
SPEED_RIDGE = 1e-6
Weigh = Callable[[Floats], Floats]
Expect = Callable[[Floats, Ints], Floats]  # deviations and the groups that have rows -> expected deviations of all


@dataclass(frozen=True)
class Fit:
    """Logs of milliseconds for a unit of each term: shape (terms), speed (groups), deviation (groups x terms)."""

    shape: Floats
    speed: Floats
    deviation: Floats
    powers: Powers | None = None

    def log_ms(self, terms: Floats, group: Ints) -> Floats:
        """Predicted log latency."""
        return np.asarray(np.log(self.parts(terms, group).sum(1)))

    def parts(self, terms: Floats, group: Ints) -> Floats:
        """Predicted milliseconds by row and term."""
        coefficients = np.exp(self.shape + self.deviation[group])
        factor = self.speed[group] + (self.powers.log_bend(terms, coefficients) if self.powers else 0.0)
        return np.asarray(terms * coefficients * np.exp(factor)[:, None])

    def with_powers(self, terms: Floats, log_ms: Floats, group: Ints) -> Fit:
        """The mean of this sum and of a product fitted to the same rows; each group's speed is the mean of both."""
        powers, level = fit_powers(terms, log_ms, group, len(self.speed))
        typical = np.log((powers.typical * np.exp(self.shape + self.deviation)).sum(1))
        return Fit(self.shape, (1 - SHARE) * self.speed + SHARE * (level - typical), self.deviation, powers)


def fit(
    terms: Floats,
    log_ms: Floats,
    group: Ints,
    groups: int,
    ridge: float,
    rounds: int = 4,
    expect: Expect | None = None,
    odd_rows: bool = False,
) -> Fit:
    """Fit shape, speeds and deviations; a group without rows keeps speed 0 and the expected deviation."""
    count, weigh = terms.shape[1], _cauchy if odd_rows else _pseudo_huber
    positive = [terms[terms[:, k] > 0, k] for k in range(count)]
    start = np.array([log_ms.mean() - np.log(count) - (np.log(p).mean() if p.size else 0.0) for p in positive])
    found = Fit(start.copy(), np.zeros(groups), np.zeros((groups, count)))
    expected, seen = np.zeros((groups, count)), np.unique(group)
    for number in range(rounds):
        for _ in range(25 if number == 0 else 6):
            found = _groups(found, terms, log_ms, group, ridge, expected, weigh)
        for _ in range(3):
            found = _shape(found, terms, log_ms, group, start, weigh)
        if expect is not None and number:
            expected = expect(found.deviation, seen)
    middle = found.deviation[seen].mean(0)  # else a group of which nothing is known would get a shape that no group has
    deviation = expected - expected[seen].mean(0)
    deviation[seen] = found.deviation[seen] - middle
    return Fit(found.shape + middle, found.speed, deviation)


def _pseudo_huber(residual: Floats) -> Floats:
    return np.asarray(1 / np.sqrt(1 + (residual / SPREAD) ** 2))


def _cauchy(residual: Floats) -> Floats:
    return np.asarray(1 / (1 + (residual / ODD_SPREAD) ** 2))


def _jacobian(found: Fit, terms: Floats, log_ms: Floats, group: Ints, weigh: Weigh) -> tuple[Floats, Floats, Floats]:
    """Share of each term, residual and weight of each row."""
    scaled = terms * np.exp(found.shape + found.deviation[group])
    total = scaled.sum(1)
    residual = log_ms - np.log(total) - found.speed[group]
    return scaled / total[:, None], residual, weigh(residual)


def _groups(
    found: Fit, terms: Floats, log_ms: Floats, group: Ints, ridge: float, expected: Floats, weigh: Weigh
) -> Fit:
    groups, count = found.deviation.shape
    share, residual, weight = _jacobian(found, terms, log_ms, group, weigh)
    rows = np.concatenate([np.ones((len(log_ms), 1)), share], axis=1)
    normal, right = np.zeros((groups, count + 1, count + 1)), np.zeros((groups, count + 1))
    np.add.at(normal, group, weight[:, None, None] * rows[:, :, None] * rows[:, None, :])
    np.add.at(right, group, (weight * residual)[:, None] * rows)
    penalty = np.array([SPEED_RIDGE, *[ridge] * count])
    now = np.concatenate([found.speed[:, None], found.deviation - expected], axis=1)
    step = np.linalg.solve(normal + np.diag(penalty + 1e-9), (right - penalty * now)[:, :, None])[:, :, 0]
    step = np.clip(step, -1, 1)
    return Fit(found.shape, found.speed + step[:, 0], found.deviation + step[:, 1:])


def _shape(found: Fit, terms: Floats, log_ms: Floats, group: Ints, start: Floats, weigh: Weigh) -> Fit:
    share, residual, weight = _jacobian(found, terms, log_ms, group, weigh)
    ridge = SHAPE_RIDGE * len(log_ms)
    normal = (weight[:, None] * share).T @ share + np.diag(np.full(len(start), ridge + 1e-6))
    step = np.linalg.solve(normal, share.T @ (weight * residual) - ridge * (found.shape - start))
    return Fit(found.shape + np.clip(step, -1, 1), found.speed, found.deviation)
