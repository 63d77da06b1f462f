"""A class fitted to some of its rows, with what specifications tell of the groups that have none."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgedistill.predict.calibrate import speeds
from edgedistill.predict.calibrate.fit import Fit, fit
from edgedistill.predict.calibrate.samples import Floats, Ints, Samples


class Fitted(NamedTuple):
    """The fit, and what is told of every group of the class."""

    fit: Fit
    told: speeds.Told
    speed: Floats  # expected, of all groups
    deviation: Floats

    def told_fit(self) -> Fit:
        """As if no group had rows of its own."""
        return Fit(self.fit.shape, self.speed, self.deviation, self.fit.powers)


def fit_class(data: Samples, train: NDArray[np.bool_]) -> Fitted:
    """Fit the rows `train` of a class."""
    weight, facts, groups = speeds.chip_weights(data), data.facts, len(data.groups)
    seen = np.unique(data.group[train])
    known, mine = [facts[g] for g in seen], weight[seen]
    mean = speeds.means(known)

    def expect(deviation: Floats, rows: Ints) -> Floats:
        told = speeds.Told({}, speeds.deviation_slopes(known, mean, deviation[rows], mine), mean)
        return np.array([told.expected_deviation(one, deviation.shape[1]) for one in facts])

    rows = data.terms[train], data.log_ms[train], data.group[train]
    found = fit(*rows, groups, data.one.ridge, expect=expect, odd_rows=data.one.compiled)
    if data.unit == "cpu":
        found = found.with_powers(*rows)
    slopes = speeds.deviation_slopes(known, mean, found.deviation[seen], mine)
    told = speeds.Told({}, slopes, mean)
    expected = np.array([told.expected_deviation(one, data.terms.shape[1]) for one in facts])
    work = np.median(data.terms, axis=0) + 1e-9  # deviations beyond the expected ones count as speed, at typical work
    own, usual = (np.log((work * np.exp(found.shape + one)).sum(1)) for one in (found.deviation, expected))
    speed = speeds.speed_slopes(known, mean, (found.speed + own - usual)[seen], mine, data.unit == "npu")
    told = speeds.Told(speed, speeds.bounded(speed, slopes), mean)
    speeds_told = np.array([told.expected_speed(one) for one in facts])
    bare = np.isin(np.arange(groups), seen, invert=True)  # without rows: as a device known by its facts alone
    return Fitted(
        replace(found, speed=np.where(bare, speeds_told, found.speed)),
        told,
        speeds_told,
        np.array([told.expected_deviation(one, data.terms.shape[1]) for one in facts]),
    )
