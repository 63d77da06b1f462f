"""Fit of the product of powers (`predict/powers.py`): log-linear, exponents not negative, one factor for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgedistill.predict.calibrate.samples import Floats, Ints
from edgedistill.predict.powers import SHARE

LEAST = 0.01  # of the mean amount: what an amount of none counts as
SUM_EXPECTED, RIDGE = 0.8, 1.0  # exponents are drawn to equal parts of nearly proportional
SPREAD = 0.3  # log error from which a row counts less, the more the further: an odd operator tells nothing of the rest
ROUNDS, SWEEPS = 25, 60


@dataclass(frozen=True)
class Powers:
    """Exponents by term, what is added to each amount, and the amounts at which both opinions are the same."""

    exponents: Floats
    least: Floats
    typical: Floats

    def log_product(self, terms: Floats) -> Floats:
        """Log of the product, 0 at typical work."""
        return np.asarray(np.log((terms + self.least) / (self.typical + self.least)) @ self.exponents)

    def log_bend(self, terms: Floats, coefficients: Floats) -> Floats:
        """Log of the factor on every term, by row; `coefficients` (rows x terms) are those of the sum."""
        now, typical = (terms * coefficients).sum(1), (self.typical * coefficients).sum(1)
        return np.asarray(SHARE * (self.log_product(terms) - np.log(now / typical)))

    def shipped(self) -> dict[str, Any]:
        """As JSON."""
        columns = {"exponents": self.exponents, "least": self.least, "typical": self.typical}
        return {name: [round(float(value), 6) for value in values] for name, values in columns.items()}


def fit_powers(terms: Floats, log_ms: Floats, group: Ints, groups: int) -> tuple[Powers, Floats]:
    """The powers, and the log of each group's milliseconds at typical work (0 for a group without rows)."""
    start = Powers(np.zeros(terms.shape[1]), LEAST * terms.mean(0) + 1e-12, np.median(terms, axis=0))
    logs = np.log((terms + start.least) / (start.typical + start.least))
    count = terms.shape[1]
    everywhere = (terms > 0).all(0)  # what some models have none of tells little of the others, in a product
    expected = np.where(everywhere, SUM_EXPECTED / max(everywhere.sum(), 1), 0.0)
    exponents, weight = expected, np.ones(len(log_ms))
    level = np.zeros(groups)
    for _ in range(ROUNDS):
        total = np.maximum(np.bincount(group, weight, groups), 1e-12)
        middle = np.stack([np.bincount(group, weight * column, groups) / total for column in logs.T], axis=1)
        usual = np.bincount(group, weight * log_ms, groups) / total
        away, wanted = logs - middle[group], log_ms - usual[group]
        normal = (weight[:, None] * away).T @ away + RIDGE * np.eye(count)
        exponents = _not_negative(normal, away.T @ (weight * wanted) + RIDGE * expected, exponents)
        level = usual - middle @ exponents
        weight = 1 / (1 + ((log_ms - level[group] - logs @ exponents) / SPREAD) ** 2)
    return Powers(exponents, start.least, start.typical), level


def _not_negative(normal: Floats, right: Floats, start: Floats) -> Floats:
    """Least squares with no negative part, by coordinate descent: convex, so that it ends at the one minimum."""
    now = np.maximum(start, 0.0)
    for _ in range(SWEEPS):
        for k in range(len(now)):
            rest = right[k] - normal[k] @ now + normal[k, k] * now[k]
            now[k] = max(rest / normal[k, k], 0.0)
    return now
