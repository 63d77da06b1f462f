"""80% intervals made of held-out errors, widened for how few they are, and what they cover of what made none of them.

Rows of one chip (or model) err alike. So many rows tell of a next chip no more than

    n / (1 + (mean rows of a key - 1) x intraclass correlation)

independent ones would (the design effect of cluster sampling, Kish 1965), and the interval is the quantiles of the
rows, with the n + 1 of conformal prediction, times Student's t over the normal quantile at that many less one.

Of few chips that correlation is little more than a guess. Where 5 to 10 of them tell an interval, it is stretched until
intervals made of all but one hold 80 % of the rows of the one left out, each in turn. Of fewer, leaving one out leaves
too few.

A chip's speed errs alike in all precisions of a unit. Where fewer than 5 chips say how far a new one may be off, the
interval holds both its own and that of all precisions together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgedistill.predict.calibrate.crossval import HeldOut
from edgedistill.predict.calibrate.samples import Floats

SHARE = 0.8
Z90 = 1.2815515655446004
NARROWEST = 0.05  # log units: no class of published rows repeats better (their noise floor)
Z95 = 1.959963984540054
FEWEST_KEYS, FEWEST_ROWS = 3, 30  # below that an interval is made of other classes
FEWEST_LEFT, MOST_LEFT = 5, 10  # chips of which each is left out in turn, to see what the others' intervals hold
FEW_CHIPS = FEWEST_LEFT - 1  # up to which the other precisions of a unit have a say
MOST_STRETCHED = 2.0  # of the log: one odd chip of six makes no interval of everything


def few(held: HeldOut) -> bool:
    """Whether a class has too few chips (or models), or rows, for an interval of its own."""
    return len(set(held.key)) < FEWEST_KEYS or len(held.error) < FEWEST_ROWS


def interval(error: Floats, key: Iterable[str]) -> tuple[float, float]:
    """Log factors on the median that the next case lies in with 80 %."""
    names = np.array(tuple(key))
    low, high = _quantiles(error, names)
    stretch = _stretch(error, names) if FEWEST_LEFT <= len(set(names)) <= MOST_LEFT else 1.0
    return stretch * low, stretch * high


def _quantiles(error: Floats, names: NDArray[np.str_]) -> tuple[float, float]:
    """Quantiles of the rows, wider as they are worth fewer independent ones."""
    tail = (1 - SHARE) / 2
    level = min(1.0, (1 - tail) * (len(error) + 1) / len(error))
    wider = _student(_independent(error, names) - 1) / Z90
    return wider * float(np.quantile(error, 1 - level)), wider * float(np.quantile(error, level))


def _stretch(error: Floats, names: NDArray[np.str_]) -> float:
    """The least factor, 1 to 2, on intervals made of the other keys that makes them hold 80 % of all rows."""
    needed = np.zeros(len(error))
    for name in sorted(set(names)):
        mine = names == name
        low, high = _quantiles(error[~mine], names[~mine])
        needed[mine] = np.where(error[mine] < 0, error[mine] / min(low, -NARROWEST), error[mine] / max(high, NARROWEST))
    return min(max(float(np.sort(needed)[int(np.ceil(SHARE * len(error))) - 1]), 1.0), MOST_STRETCHED)


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


def joint(held: HeldOut, kin: Sequence[HeldOut]) -> tuple[float, float]:
    """The interval of a class, and of it together with the other precisions of its unit if its chips are few."""
    own = interval(held.error, held.key)
    if not kin or len(set(held.key)) > FEW_CHIPS:
        return own
    every = [held, *kin]
    both = interval(np.concatenate([one.error for one in every]), sum((one.key for one in every), ()))
    return min(own[0], both[0]), max(own[1], both[1])


def judged(held: HeldOut, kin: Sequence[HeldOut] = ()) -> tuple[NDArray[np.bool_], Floats] | None:
    """For each row whether it lies in the interval made of the other keys', and that interval's log width.

    So nothing covers itself; None where there is one key.
    """
    inside, width = np.zeros(len(held.error), dtype=bool), np.zeros(len(held.error))
    keys = np.array(held.key)
    for key in sorted(set(held.key)):
        mine = keys == key
        if mine.all():
            return None
        ends = joint(_without(held, key), [_without(one, key) for one in kin])
        inside[mine], width[mine] = covered(held.error[mine], ends), _width(ends)
    return inside, width


def judged_few(held: HeldOut, ends: tuple[float, float]) -> tuple[NDArray[np.bool_], Floats]:
    """As `judged`, of what `by_split` ships for few keys: `ends` of other classes, or the other keys' where wider."""
    inside, width = np.zeros(len(held.error), dtype=bool), np.zeros(len(held.error))
    keys = np.array(held.key)
    for key in sorted(set(held.key)):
        mine, given = keys == key, ends
        if not mine.all():
            own = interval(held.error[~mine], keys[~mine])
            given = min(own[0], ends[0]), max(own[1], ends[1])
        inside[mine], width[mine] = covered(held.error[mine], given), _width(given)
    return inside, width


def coverage(held: HeldOut) -> float:
    """How much of each key's errors lies in the interval made of the other keys'."""
    found = judged(held)
    return float("nan") if found is None else float(found[0].mean())


def sure(inside: NDArray[np.bool_], key: Iterable[str]) -> tuple[float, float]:
    """95% interval of a coverage (Wilson's, of a binomial share), of as many cases as are independent."""
    count, share = _independent(inside.astype(float), np.array(tuple(key))), float(inside.mean())
    scale = 1 + Z95**2 / count
    middle = (share + Z95**2 / (2 * count)) / scale
    away = Z95 / scale * float(np.sqrt(share * (1 - share) / count + (Z95 / (2 * count)) ** 2))
    return middle - away, middle + away


def _without(held: HeldOut, key: str) -> HeldOut:
    rest = np.array(held.key) != key
    return HeldOut(held.error[rest], tuple(np.array(held.key)[rest].tolist()), held.traced[rest])


def _width(ends: tuple[float, float]) -> float:
    return max(ends[1], NARROWEST) - min(ends[0], -NARROWEST)


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
