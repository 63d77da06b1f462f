"""Two builds compared quantity by quantity, without a limit: what got better, what worse, what is not known. Pure."""

from __future__ import annotations

from math import sqrt
from statistics import median
from typing import Literal

from edgedistill.gate.regression import unpaired_interval
from edgedistill.specs import CompareLine, Comparison, PairedCounts, Quality, RatioInterval, Side

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
    told = seen.latency
    text = "decode" in seen.baseline.launch_tokens_per_s  # a sample of it is the time to the first token
    return CompareLine(
        name="first_token_ms" if text else "latency_p50_ms",
        unit="ms",
        a=median(seen.baseline.launch_medians_ms),
        b=median(seen.candidate.launch_medians_ms),
        change=told.ratio,
        low=told.low,
        high=told.high,
        verdict=_of_launches(told, seen.tolerance),
        note=f"{told.pairs} {_how(seen)}; {seen.signature} on {seen.device}",
    )


def speed_lines(seen: Comparison) -> list[CompareLine]:
    """Tokens per second, reading and writing, where both sides make text; more is better."""
    lines = []
    for name, cost in seen.speeds.items():
        old, new = seen.baseline.launch_tokens_per_s[name], seen.candidate.launch_tokens_per_s[name]
        lines.append(CompareLine(
            name=f"{name}_tokens_per_s", unit="tokens/s", a=median(old), b=median(new),
            change=1 / cost.ratio, low=1 / cost.high, high=1 / cost.low, verdict=_of_launches(cost, seen.tolerance),
            note=f"{cost.pairs} {_how(seen)}; {seen.signature} on {seen.device}; more is better",
        ))  # fmt: skip
    return lines


def _how(seen: Comparison) -> str:
    return "interleaved pairs" if seen.interleaved else "launches each, not interleaved"


def memory_line(a: Side, b: Side, tolerance: float) -> CompareLine | None:
    """The highest memory of the process; None where a tool does not tell it."""
    if a.peak_memory_mb is None or b.peak_memory_mb is None:
        return None
    old, new = a.launch_peaks_mb, b.launch_peaks_mb
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


def accuracy_line(a: Quality, b: Quality, *, same_rows: bool, paired: PairedCounts | None = None) -> CompareLine:
    """Accuracies and the 95 % interval of their difference.

    `paired` counts the rows by who answers them, A as the teacher and B as the file: then the interval is that of two
    answers to the same rows (Newcombe 1998, Statistics in Medicine 17:2635, method 10). Without it the rows are taken
    as drawn twice (17:873, method 10), which makes it wider than it need be.
    """
    change = b.accuracy - a.accuracy
    if not same_rows:
        return CompareLine(
            name="accuracy", unit="", a=a.accuracy, b=b.accuracy, verdict="not comparable", note="judged on other rows"
        )
    tied = _correlation(paired) if paired else 0.0
    low = change - _joined(b.accuracy - b.low, a.high - a.accuracy, tied)
    high = change + _joined(b.high - b.accuracy, a.accuracy - a.low, tied)
    word: Word = "not decided"
    if low > 0 or high < 0:
        word = "better" if low > 0 else "worse"
    elif low >= -SAME_SHARE and high <= SAME_SHARE:
        word = "same"
    told = "the interval does not use that they are the same"
    if paired:
        told = f"{paired.only_teacher} only by A, {paired.only_file} only by B; paired"
    note = f"{a.correct} and {b.correct} of the same {a.rows} rows; {told}"
    return CompareLine(
        name="accuracy", unit="", a=a.accuracy, b=b.accuracy, change=change, low=low, high=high, verdict=word, note=note
    )


def _joined(mine: float, theirs: float, correlation: float) -> float:
    """Half an interval of a difference from half intervals of its sides."""
    return sqrt(max(0.0, mine**2 - 2 * correlation * mine * theirs + theirs**2))


def _correlation(seen: PairedCounts) -> float:
    """Phi of the two answers, with Newcombe's correction for continuity; 0 where a side is always or never right."""
    margins = (
        (seen.both + seen.only_teacher) * (seen.only_file + seen.neither)
        * (seen.both + seen.only_file) * (seen.only_teacher + seen.neither)
    )  # fmt: skip
    excess = float(seen.both * seen.neither - seen.only_file * seen.only_teacher)
    if excess > 0:
        excess = max(0.0, excess - seen.rows / 2)
    return excess / sqrt(margins) if margins else 0.0


def _of_launches(seen: RatioInterval, tolerance: float) -> Word:
    """Few launches make the interval too short: they tell only a change that is beyond the tolerance in all of it."""
    worst, best = 1 + tolerance, 1 / (1 + tolerance)
    enough = seen.pairs >= LAUNCHES_MIN
    if seen.low > worst or (enough and seen.low > 1 and seen.ratio > worst):
        return "worse"
    if seen.high < best or (enough and seen.high < 1 and seen.ratio < best):
        return "better"
    return "same" if enough and seen.low >= best and seen.high <= worst else "not decided"
