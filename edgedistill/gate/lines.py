"""Two builds compared quantity by quantity, without a limit: what got better, what worse, what is not known. Pure."""

from __future__ import annotations

from math import sqrt
from typing import Literal

from edgedistill.gate.regression import unpaired_interval
from edgedistill.specs import CompareLine, Comparison, Measurement, Quality, RatioInterval

Word = Literal["better", "worse", "same", "not decided", "not comparable"]
LAUNCHES_MIN = 5  # below this a bootstrap over launches holds far less often than it says
SAME_SHARE = 0.01  # accuracies this near to each other, with their whole interval, are the same


def exact_line(name: str, unit: str, a: float, b: float, tolerance: float, note: str = "") -> CompareLine:
    """A cost that has no noise, or comes without it; less is better."""
    ratio = b / a
    word: Word = "worse" if ratio > 1 + tolerance else "better" if ratio < 1 / (1 + tolerance) else "same"
    return CompareLine(name=name, unit=unit, a=a, b=b, change=ratio, verdict=word, note=note)


def latency_line(seen: Comparison) -> CompareLine:
    """The medians of the launches' medians, with the interval of their ratio."""
    from statistics import median

    told, how = seen.latency, "interleaved pairs" if seen.interleaved else "launches each, not interleaved"
    return CompareLine(
        name="latency_p50_ms",
        unit="ms",
        a=median(seen.baseline.launch_medians_ms),
        b=median(seen.candidate.launch_medians_ms),
        change=told.ratio,
        low=told.low,
        high=told.high,
        verdict=_of_launches(told, seen.tolerance),
        note=f"{told.pairs} {how}; {seen.signature} on {seen.device}",
    )


def memory_line(a: Measurement, b: Measurement, tolerance: float) -> CompareLine | None:
    """The highest memory of the process; None where a tool does not tell it."""
    if a.peak_memory_mb is None or b.peak_memory_mb is None:
        return None
    old = [item.peak_rss_mb for item in a.launches if item.peak_rss_mb]
    new = [item.peak_rss_mb for item in b.launches if item.peak_rss_mb]
    if len(old) < 2 or len(new) < 2:
        note = "highest of all launches; without an interval"
        return exact_line("peak_memory_mb", "MB", a.peak_memory_mb, b.peak_memory_mb, tolerance, note)
    told = unpaired_interval(old, new)
    return CompareLine(
        name="peak_memory_mb",
        unit="MB",
        a=a.peak_memory_mb,
        b=b.peak_memory_mb,
        change=told.ratio,
        low=told.low,
        high=told.high,
        verdict=_of_launches(told, tolerance),
        note=f"highest of all launches; the change is of their medians, {told.pairs} launches each",
    )


def accuracy_line(a: Quality, b: Quality, *, same_rows: bool) -> CompareLine:
    """Accuracies and the 95 % interval of their difference (Newcombe 1998, method 10).

    The interval takes the rows as drawn twice. They are the same rows, which only makes it wider than it need be.
    """
    change = b.accuracy - a.accuracy
    if not same_rows:
        return CompareLine(
            name="accuracy", unit="", a=a.accuracy, b=b.accuracy, verdict="not comparable", note="judged on other rows"
        )
    low = change - sqrt((b.accuracy - b.low) ** 2 + (a.high - a.accuracy) ** 2)
    high = change + sqrt((b.high - b.accuracy) ** 2 + (a.accuracy - a.low) ** 2)
    word: Word = "not decided"
    if low > 0 or high < 0:
        word = "better" if low > 0 else "worse"
    elif low >= -SAME_SHARE and high <= SAME_SHARE:
        word = "same"
    note = f"{a.correct} and {b.correct} of the same {a.rows} rows; the interval does not use that they are the same"
    return CompareLine(
        name="accuracy", unit="", a=a.accuracy, b=b.accuracy, change=change, low=low, high=high, verdict=word, note=note
    )


def _of_launches(seen: RatioInterval, tolerance: float) -> Word:
    """Few launches make the interval too short: they tell only a change that is beyond the tolerance in all of it."""
    worst, best = 1 + tolerance, 1 / (1 + tolerance)
    enough = seen.pairs >= LAUNCHES_MIN
    if seen.low > worst or (enough and seen.low > 1 and seen.ratio > worst):
        return "worse"
    if seen.high < best or (enough and seen.high < 1 and seen.ratio < best):
        return "better"
    return "same" if enough and seen.low >= best and seen.high <= worst else "not decided"
