"""What a track says was spent in a window of time, and between which bounds."""

from __future__ import annotations

import itertools
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from edgedistill.errors import DataError
from edgedistill.runners._meters import Track

SAMPLES_MIN = 8
Z95 = 1.96


@dataclass(frozen=True)
class Spent:
    """Energy in mJ, with bounds; `rails` too. `interval_s` is the mean time between two readings in the window."""

    total: float
    low: float
    high: float
    rails: dict[str, float]
    samples: int
    interval_s: float | None


def spent(track: Track, begin_s: float, end_s: float) -> Spent:
    """Energy between two moments of the track's clock.

    A counter is read off between its nearest readings; the last reading before the window and the first one after it
    bound it from above, those inside from below. Power is integrated by the trapezoid rule; its bounds are the 95 %
    interval of the mean of the samples and half a step of the meter either way.

    Raises:
        DataError: the readings do not cover the window, or are too few.
    """
    times = track.times_s
    before, after = bisect_right(times, begin_s) - 1, bisect_left(times, end_s)
    if before < 0 or after >= len(times) or end_s <= begin_s:
        raise DataError("the meter was not read before and after the measurement")
    inside = range(bisect_left(times, begin_s), bisect_right(times, end_s))
    added = [sum(track.rails[name][place] for name in track.counted) for place in range(len(times))]
    _check_updates(track, added[before : after + 1], end_s - begin_s)
    rails = {name: _between(track, values, begin_s, end_s) for name, values in track.rails.items()}
    total = sum(rails[name] for name in track.counted)
    if track.cumulative:
        high = added[after] - added[before] + track.step / 2
        low = (added[inside[-1]] - added[inside[0]] if len(inside) > 1 else total) - track.step / 2
        low = min(low, total - track.step / 2)
    else:
        if len(inside) < SAMPLES_MIN:
            raise DataError(
                f"only {len(inside)} readings in {end_s - begin_s:.2g} s, at least {SAMPLES_MIN} are needed: measure "
                "longer, e.g. --sustained 60"
            )
        seconds = end_s - begin_s
        half = Z95 * statistics.stdev(added[place] for place in inside) / len(inside) ** 0.5 + track.step / 2
        low, high = total - half * seconds, total + half * seconds
    gaps = len(inside) - 1
    interval = (times[inside[-1]] - times[inside[0]]) / gaps if gaps > 0 else None
    return Spent(total, max(0.0, low), high, rails, len(inside), interval)


def _check_updates(track: Track, values: Sequence[float], seconds: float) -> None:
    changes = sum(a != b for a, b in itertools.pairwise(values))
    if changes < track.updates_min:
        raise DataError(
            f"the gauge changed {changes} times in {seconds:.2g} s, at least {track.updates_min} are needed: measure "
            "longer, e.g. --sustained 600"
        )


def _between(track: Track, values: Sequence[float], begin_s: float, end_s: float) -> float:
    if track.cumulative:
        return _at(track.times_s, values, end_s) - _at(track.times_s, values, begin_s)
    places = [n for n, time_s in enumerate(track.times_s) if begin_s < time_s < end_s]
    points = [(begin_s, _at(track.times_s, values, begin_s)), *((track.times_s[n], values[n]) for n in places),
              (end_s, _at(track.times_s, values, end_s))]  # fmt: skip
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))


def _at(times: Sequence[float], values: Sequence[float], moment: float) -> float:
    """Linear between the two readings around a moment."""
    right = min(bisect_left(times, moment), len(times) - 1)
    left = max(0, right - 1) if times[right] > moment else right
    if left == right or times[right] == times[left]:
        return values[right]
    return values[left] + (values[right] - values[left]) * (moment - times[left]) / (times[right] - times[left])
