"""What specifications tell of a group: its speed, and how its terms stand to those of its class.

    log coefficient of a term = shape + speed + deviation

Speed and deviation are expected linear in the facts of the group.

Facts are logs of rates, flags, the build, and the kind of the fastest core and its line of designs: a core that no row
has is told from the nearest of its line. Each chip weighs as one. What the rows do not tell stays at the expectation,
`PRIOR` for the speed and none for the deviations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edgedistill.predict.calibrate.samples import Floats, Samples
from edgedistill.predict.cores import with_kin

# Expected slopes of log(ms) on the logs of rates, and on flags. Rates help less than in proportion, as part of the
# time is spent waiting for memory (spec scaling is off by x1.3 or so).
PRIOR = {
    "compute": -0.7, "bandwidth": -0.2, "threads": -0.6, "crowd": 0.0, "uneven": 0.0, "in_order": 0.1, "fp16": -0.2,
    "dot": -0.2, "vector": 0.5,
}  # fmt: skip
# What physics demands.
SIGN = {"compute": -1.0, "bandwidth": -1.0, "threads": -1.0, "in_order": 1.0, "fp16": -1.0, "dot": -1.0, "vector": 1.0}
# Ridges, in chips: what an expectation is worth. A kind of core differs from what its rates tell by x1.4 or so, chips
# of one kind as much; of those and of the ridge on deviations the middle of what was tried was taken, not the best.
RIDGE, DEVIATION_RIDGE = 0.2, 0.3
KIND_RIDGE = {"build:": 0.4, "core:": 0.5, "line:": 0.5}
SPREAD = 0.3  # log error from which a group counts less: an old build, or threads that wait for each other
ROUNDS = 20
ENOUGH_CHIPS = 3
DEVIATION_CHIPS = 8  # from which a class of CPUs tells how the terms of a kind of device stand to each other


class Told(NamedTuple):
    """Slopes of the speed by fact (`one`: intercept), of the deviation of each term by fact, and means of the facts."""

    speed: dict[str, float]
    deviation: dict[str, Floats]
    mean: dict[str, float]

    def expected_speed(self, facts: Mapping[str, float]) -> float:
        """The speed of a group; a fact that is missing is taken as the mean."""
        facts = with_kin(facts, self.speed)
        return self.speed["one"] + sum(slope * _away(name, facts, self.mean) for name, slope in self.speed.items())

    def expected_deviation(self, facts: Mapping[str, float], terms: int) -> Floats:
        """The deviation of each term."""
        parts = [slopes * _away(name, facts, self.mean) for name, slopes in self.deviation.items()]
        return np.asarray(sum(parts, np.zeros(terms)))


def chip_weights(data: Samples) -> Floats:
    """So that the groups of one chip weigh together as one."""
    socs = data.group_soc()
    return np.array([1.0 / socs.count(soc) for soc in socs])


def means(facts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each rate and flag over the groups that have it."""
    names = sorted({name for one in facts for name in one if name in PRIOR})
    return {name: float(np.mean([one[name] for one in facts if name in one])) for name in names}


def deviation_slopes(
    facts: Sequence[Mapping[str, float]], mean: Mapping[str, float], deviation: Floats, weight: Floats
) -> dict[str, Floats]:
    """Ridge regression of the deviations (groups x terms) on rates, flags and builds; an intercept is left out."""
    if weight.sum() < DEVIATION_CHIPS or "threads" not in mean:
        return {}
    names = [*mean, *sorted({name for one in facts for name in one if name.startswith("build:")})]
    matrix = np.array([[1.0, *(_away(name, one, mean) for name in names)] for one in facts])
    ridge = np.diag([1e-6, *[DEVIATION_RIDGE] * len(names)])
    solved = np.linalg.solve((weight[:, None] * matrix).T @ matrix + ridge, matrix.T @ (weight[:, None] * deviation))
    return {name: np.asarray(solved[1 + n]) for n, name in enumerate(names)}


def speed_slopes(
    facts: Sequence[Mapping[str, float]], mean: Mapping[str, float], speed: Floats, weight: Floats, npu: bool
) -> dict[str, float]:
    """Robust ridge regression of the speed towards `PRIOR`; slopes with a sign that physics forbids are left out."""
    known = [n for n, one in enumerate(facts) if not npu or "compute" in one]
    if len(known) >= ENOUGH_CHIPS and weight[known].sum() >= ENOUGH_CHIPS:  # the others blur what a rate is worth
        facts, speed, weight = [facts[n] for n in known], speed[known], weight[known]
    names = list(mean)
    solved = _solve(facts, names, mean, speed, weight)
    wrong = [name for name in names if solved[name] * SIGN.get(name, 0.0) < 0]
    if wrong:  # a faster chip is never slower: what a class says against that is noise of few chips
        solved = _solve(facts, [name for name in names if name not in wrong], mean, speed, weight)
    return solved


def bounded(speed: Mapping[str, float], deviation: Mapping[str, Floats]) -> dict[str, Floats]:
    """Deviations cut so that no term of a faster chip is slower."""
    found = {}
    for name, slopes in deviation.items():
        sign, own = SIGN.get(name, 0.0), speed.get(name, 0.0)
        found[name] = slopes if not sign else sign * np.maximum(sign * slopes, -sign * own)
    return found


def _solve(
    facts: Sequence[Mapping[str, float]], names: list[str], mean: Mapping[str, float], speed: Floats, weight: Floats
) -> dict[str, float]:
    kinds = sorted({name for one in facts for name in one if name.startswith(tuple(KIND_RIDGE))})
    keys = ["one", *names, *kinds]
    matrix = np.array([[1.0, *(_away(name, one, mean) for name in keys[1:])] for one in facts])
    expected = np.array([PRIOR.get(name, 0.0) for name in keys])
    kind_ridge = [KIND_RIDGE[name[: name.index(":") + 1]] for name in kinds]
    ridge = np.array([1e-6, *[RIDGE] * len(names), *kind_ridge])
    solved = expected
    for _ in range(ROUNDS):
        robust = weight / np.sqrt(1 + ((speed - matrix @ solved) / SPREAD) ** 2)
        normal = (robust[:, None] * matrix).T @ matrix + np.diag(ridge)
        solved = np.linalg.solve(normal, matrix.T @ (robust * speed) + ridge * expected)
    return dict(zip(keys, map(float, solved), strict=True))


def _away(name: str, facts: Mapping[str, float], mean: Mapping[str, float]) -> float:
    """A fact less its mean; flags of kinds have none."""
    if name == "one":
        return 0.0
    return facts.get(name, mean[name]) - mean[name] if name in mean else facts.get(name, 0.0)
