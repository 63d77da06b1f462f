"""80% intervals made of held-out errors, widened for how few they are, and what they cover of what made none of them.

Rows of one chip (or model) err alike. So many rows tell of a next chip no more than

    n / (1 + (mean rows of a key - 1) x intraclass correlation)

independent ones would (the design effect of cluster sampling, Kish 1965), and the interval is the quantiles of the
rows, with the n + 1 of conformal prediction, times Student's t over the normal quantile at that many less one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgedistill.predict.calibrate.crossval import HeldOut
from edgedistill.predict.calibrate.samples import Floats

SHARE = 0.8
Z90 = 1.2815515655446004
NARROWEST = 0.05  # log units: no class of published rows repeats better (their noise floor)
FEWEST_KEYS, FEWEST_ROWS = 3, 30  # below that an interval is made of other classes


def few(held: HeldOut) -> bool:
    """Whether a class has too few chips (or models), or rows, for an interval of its own."""
    return len(set(held.key)) < FEWEST_KEYS or len(held.error) < FEWEST_ROWS


def interval(error: Floats, key: Iterable[str]) -> tuple[float, float]:
    """Log factors on the median that the next case lies in with 80 %."""
    names = np.array(tuple(key))
    tail = (1 - SHARE) / 2
    level = min(1.0, (1 - tail) * (len(error) + 1) / len(error))
    wider = _student(_independent(error, names) - 1) / Z90
    return wider * float(np.quantile(error, 1 - level)), wider * float(np.quantile(error, level))


def rounded(ends: tuple[float, float]) -> list[float]:
    """As shipped: never narrower than rows repeat, and the median inside."""
    return [round(min(ends[0], -NARROWEST), 4), round(max(ends[1], NARROWEST), 4)]


def pooled(others: Iterable[HeldOut]) -> tuple[float, float] | None:
    """One interval of several classes; None: there are none."""
    ends = [interval(held.error, held.key) for held in others]
    if not ends:
        return None
    low, high = (float(np.median([one[side] for one in ends])) for side in (0, 1))
    return low, high


def coverage(held: HeldOut) -> float:
    """How much of each key's errors lies in the interval made of the other keys': so that nothing covers itself."""
    inside = np.zeros(len(held.error), dtype=bool)
    keys = np.array(held.key)
    for key in sorted(set(held.key)):
        mine = keys == key
        if mine.all():
            return float("nan")
        inside[mine] = covered(held.error[mine], interval(held.error[~mine], keys[~mine]))
    return float(inside.mean())


def covered(error: Floats, ends: tuple[float, float]) -> Floats:
    """Which errors an interval holds."""
    return np.asarray((error >= min(ends[0], -NARROWEST)) & (error <= max(ends[1], NARROWEST)))


def by_split(held: Mapping[str, HeldOut], others: Iterable[Mapping[str, HeldOut]], split: str) -> tuple[float, float]:
    """The interval of a split: the class's own, or that of the other classes that have enough.

    Where none has, the class's own, however few.
    """
    if not few(held[split]):
        return interval(held[split].error, held[split].key)
    found = pooled(one[split] for one in others if split in one and not few(one[split]))
    own = interval(held[split].error, held[split].key)
    return own if found is None else (min(own[0], found[0]), max(own[1], found[1]))


def _independent(error: Floats, names: NDArray[np.str_]) -> float:
    """How many independent errors tell as much: by the intraclass correlation (one-way analysis of variance)."""
    keys, where, sizes = np.unique(names, return_inverse=True, return_counts=True)
    rows, groups = len(error), len(keys)
    if groups < 2 or rows <= groups:
        return float(groups)
    clipped = np.clip(error, *np.quantile(error, [0.05, 0.95]))  # a tail is no correlation
    means = np.bincount(where, clipped) / sizes
    between = float((sizes * (means - clipped.mean()) ** 2).sum()) / (groups - 1)
    inside = float(((clipped - means[where]) ** 2).sum()) / (rows - groups)
    usual = (rows - (sizes**2).sum() / rows) / (groups - 1)
    spread = between + (usual - 1) * inside
    share = min(max((between - inside) / spread, 0.0), 1.0) if spread > 0 else 0.0
    return float(rows / (1 + ((sizes**2).sum() / rows - 1) * share))


def _student(freedom: float) -> float:
    """90 % quantile of Student's t: the normal one and two terms of its expansion in 1/freedom (2 % short at 2)."""
    n = max(freedom, 2.0)
    return float(Z90 + (Z90**3 + Z90) / (4 * n) + (5 * Z90**5 + 16 * Z90**3 + 3 * Z90) / (96 * n**2))
