"""Speed of a group told from the specifications of its device: what is left when nothing was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgedistill.predict.calibrate.fit import Fit
from edgedistill.predict.calibrate.samples import Floats
from edgedistill.predict.devices import of_name

# Expected slopes of log(ms) on the logs of rates, and on flags; what a class cannot tell stays here. Rates help less
# than in proportion, as part of the time is spent waiting for memory (spec scaling is off by x1.3 or so).
PRIOR = {"compute": -0.7, "bandwidth": -0.2, "threads": -0.6, "crowd": 0.0, "in_order": 0.1, "fp16": -0.2}
SIGN = {"compute": -1.0, "bandwidth": -1.0, "threads": -1.0, "in_order": 1.0, "fp16": -1.0, "crowd": 1.0}
PRIOR_ROWS = 1.0  # how many chips the expectation is worth
BUILD_ROWS = 2.0
SPREAD = 0.3  # log error from which a group counts less: an old build, or threads that wait for each other
ROUNDS = 20
ENOUGH_CHIPS = 3


def typical_speed(found: Fit, terms: Floats) -> Floats:
    """Speed of each group with its own deviations put into it: log ms of the typical work over that of the shape."""
    work = np.median(terms, axis=0) + 1e-9
    own = np.log((work * np.exp(found.shape + found.deviation)).sum(1))
    return np.asarray(found.speed + own - np.log((work * np.exp(found.shape)).sum()))


def slopes(groups: Sequence[str], socs: Sequence[str], speed: Floats, unit: str) -> dict[str, float]:
    """Ridge regression towards `PRIOR`, each chip weighing as one; `one`: intercept, `mean:x` fills a missing x."""
    known = [n for n, name in enumerate(groups) if unit != "npu" or "compute" in descriptors(name, unit)]
    if len({socs[n] for n in known}) >= ENOUGH_CHIPS:  # the others would only blur what a stated rate is worth
        groups, socs, speed = [groups[n] for n in known], [socs[n] for n in known], speed[known]
    found = [descriptors(name, unit) for name in groups]
    names = sorted({name for one in found for name in one if not name.startswith("build:")} & set(PRIOR))
    solved = _solve(found, names, [socs.count(soc) for soc in socs], speed)
    wrong = [name for name in names if solved[name] * SIGN.get(name, 0.0) < 0]
    if wrong:  # a faster chip is never slower: what a class says against that is noise of few chips
        solved = _solve(found, [name for name in names if name not in wrong], [socs.count(soc) for soc in socs], speed)
    return solved


def _solve(found: Sequence[dict[str, float]], names: list[str], repeats: list[int], speed: Floats) -> dict[str, float]:
    builds = sorted({name for one in found for name in one if name.startswith("build:")})
    mean = {name: float(np.mean([one[name] for one in found if name in one])) for name in names}
    matrix = np.array(
        [
            [1.0, *(one.get(name, mean[name]) - mean[name] for name in names), *(one.get(name, 0.0) for name in builds)]
            for one in found
        ]
    )
    weight = 1.0 / np.array(repeats)
    expected = np.array([0.0, *(PRIOR[name] for name in names), *[0.0] * len(builds)])
    ridge = np.array([1e-6, *[PRIOR_ROWS] * len(names), *[BUILD_ROWS] * len(builds)]) * 0.2
    solved = expected
    for _ in range(ROUNDS):
        robust = weight / np.sqrt(1 + ((speed - matrix @ solved) / SPREAD) ** 2)
        normal = (robust[:, None] * matrix).T @ matrix + np.diag(ridge)
        solved = np.linalg.solve(normal, matrix.T @ (robust * speed) + ridge * expected)
    keys = ["one", *names, *builds]
    return {**dict(zip(keys, map(float, solved), strict=True)), **{f"mean:{name}": mean[name] for name in names}}


def descriptors(group: str, unit: str) -> dict[str, float]:
    """What explains the speed of a group."""
    device, build, threads, mode = group.split("|")
    return {**of_name(device).descriptors(unit, int(threads), mode), f"build:{build}": 1.0}


def expected_speed(slope: dict[str, float], found: dict[str, float]) -> float:
    """The speed that the slopes expect."""
    total = slope["one"]
    for name in PRIOR:
        if name in slope:
            total += slope[name] * (found.get(name, slope[f"mean:{name}"]) - slope[f"mean:{name}"])
    return total + sum(slope.get(name, 0.0) * value for name, value in found.items() if name.startswith("build:"))
