"""Is a candidate slower than its baseline? Decided from interleaved launches of both on one device. Pure.

Noise lies between processes and not between inferences, so a launch's median is one observation and a pair of launches
that shared the same seconds is the unit. The statistic is the median over pairs of log(candidate / baseline); its
interval is a paired bootstrap over pairs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, log1p
from statistics import median

from edgedistill.errors import SpecError
from edgedistill.specs import Check, Comparison, Provenance, RatioInterval, Verdict

RESAMPLES = 2000
CONFIDENCE = 0.95
# From here on a lower bound above 1 convicts together with an estimate above the tolerance. With fewer pairs the
# bootstrap's interval is too short (of 5 pairs it holds in 94 of 100), so the lower bound itself must be above it.
PAIRS_SURE = 10


@dataclass(frozen=True)
class Rule:
    """What counts as slower, and how long to look.

    `tolerance` is the share by which a candidate may be slower. It is implausibly fast below 1 / `speedup_max` of the
    baseline's time. Pairs are taken `pairs_step` at a time until everything is decided or `pairs_max` is reached.
    """

    tolerance: float = 0.05
    speedup_max: float = 2.0
    pairs_step: int = 5
    pairs_max: int = 20

    def __post_init__(self) -> None:
        """Raises SpecError for a rule that could decide nothing."""
        if not 0 < self.tolerance < 1:
            raise SpecError(f"tolerance = {self.tolerance:g}: a share between 0 and 1 is needed, for example 0.05.")
        if self.speedup_max <= 1:
            raise SpecError(f"speedup_max = {self.speedup_max:g}: a factor above 1 is needed, for example 2.")
        if not 5 <= self.pairs_step <= self.pairs_max:
            raise SpecError(
                f"pairs = {self.pairs_step} growing to {self.pairs_max}: at least 5 are needed, and not more to start "
                "with than to end with."
            )


def paired_interval(baseline: Sequence[float], candidate: Sequence[float]) -> RatioInterval:
    """The candidate's time over the baseline's, from launch medians in ms in the order in which they were paired.

    The resamples are drawn with a fixed seed: the same launches give the same verdict.

    Raises:
        ValueError: there are no pairs, or one launch has no partner.
    """
    ratios = [log(new / old) for old, new in zip(baseline, candidate, strict=True)]
    return _interval(median(ratios), _medians(ratios), len(ratios))


def unpaired_interval(baseline: Sequence[float], candidate: Sequence[float]) -> RatioInterval:
    """As `paired_interval`, of launches that shared no seconds: the ratio of the medians, each side drawn by itself."""
    old, new = [log(value) for value in baseline], [log(value) for value in candidate]
    again = [mine - theirs for mine, theirs in zip(_medians(new, seed=1), _medians(old), strict=True)]
    return _interval(median(new) - median(old), again, min(len(old), len(new)))


def _medians(values: Sequence[float], seed: int = 0) -> list[float]:
    """The medians of bootstrap resamples; sorting a few numbers is quicker than `statistics.median`."""
    drawn, count = random.Random(seed), len(values)
    upper, lower = count // 2, (count - 1) // 2
    resampled = (sorted(drawn.choices(values, k=count)) for _ in range(RESAMPLES))
    return [(item[lower] + item[upper]) / 2 for item in resampled]


def _interval(centre: float, resampled: Sequence[float], pairs: int) -> RatioInterval:
    ordered, tail = sorted(resampled), round((1 - CONFIDENCE) / 2 * len(resampled))
    low, high = min(ordered[tail], centre), max(ordered[-1 - tail], centre)
    return RatioInterval(ratio=exp(centre), low=exp(low), high=exp(high), confidence=CONFIDENCE, pairs=pairs)


def slower(seen: RatioInterval, rule: Rule, *, interleaved: bool = True) -> Verdict:
    """FAIL: slower by more than the tolerance; PASS: not; INCONCLUSIVE: the launches do not say.

    Stored launches convict only with the whole interval above the tolerance: how much two sessions differ on their own
    is not in it.
    """
    worst = 1 + rule.tolerance
    if seen.pairs < rule.pairs_step:
        return Verdict.INCONCLUSIVE
    if seen.low > worst or (interleaved and seen.pairs >= PAIRS_SURE and seen.low > 1 and seen.ratio > worst):
        return Verdict.FAIL
    return Verdict.PASS if seen.high < worst else Verdict.INCONCLUSIVE


def plausible(seen: RatioInterval, rule: Rule) -> Verdict:
    """FAIL: so much faster that this is more likely another file, or a baseline of long ago."""
    least = 1 / rule.speedup_max
    if seen.pairs < rule.pairs_step:
        return Verdict.INCONCLUSIVE
    if seen.high < least:
        return Verdict.FAIL
    return Verdict.PASS if seen.low >= least else Verdict.INCONCLUSIVE


def steady(seen: RatioInterval, rule: Rule) -> Verdict:
    """PASS when the baseline differs from itself by at most half the tolerance; INCONCLUSIVE otherwise, never FAIL."""
    return Verdict.PASS if abs(log(seen.ratio)) <= log1p(rule.tolerance / 2) else Verdict.INCONCLUSIVE


def decided(comparison: Comparison, rule: Rule) -> bool:
    """Whether more pairs could change no verdict that counts."""
    times = (comparison.latency, *comparison.speeds.values())
    seen = (
        *(slower(one, rule, interleaved=comparison.interleaved) for one in times),
        plausible(comparison.latency, rule),
        Verdict.PASS if comparison.itself is None else steady(comparison.itself, rule),
    )
    return Verdict.INCONCLUSIVE not in seen


def regression_lines(comparison: Comparison, rule: Rule) -> tuple[Check, ...]:
    """The gate's lines of a comparison. A machine that differs from itself too much decides nothing about latency."""
    seen = comparison.latency
    verdicts = [slower(seen, rule, interleaved=comparison.interleaved), plausible(seen, rule)]
    unsteady = comparison.itself is not None and steady(comparison.itself, rule) is not Verdict.PASS
    if unsteady or comparison.unfit:
        verdicts = [Verdict.INCONCLUSIVE] * 2
    how = "interleaved pairs" if comparison.interleaved else "launches each, not interleaved"
    note = (
        f"95% CI {seen.low:.3f} to {seen.high:.3f}, {seen.pairs} {how}; "
        f"{median(comparison.candidate.launch_medians_ms):.4g} ms where the baseline takes "
        f"{median(comparison.baseline.launch_medians_ms):.4g} ms"
    )
    tail = "; this machine differs from itself too much" if unsteady else ""
    tail += f"; not fit to be measured: {', '.join(comparison.unfit)}" if comparison.unfit else ""
    fast = "too fast to be believed: another file, or a baseline of long ago"
    least = fast if verdicts[1] is Verdict.FAIL else "less than this would not be believed"
    lines = [
        _line("latency_ratio", verdicts[0], seen.ratio, 1 + rule.tolerance, note + tail),
        _line("latency_ratio_min", verdicts[1], seen.ratio, 1 / rule.speedup_max, least + tail),
    ]
    lines += [_speed_line(name, told, comparison, rule, tail) for name, told in comparison.speeds.items()]
    if comparison.itself is not None:
        own = comparison.itself
        told = f"the baseline against itself; 95% CI {own.low:.3f} to {own.high:.3f}, {own.pairs} pairs"
        off = exp(abs(log(own.ratio)))
        lines.append(_line("aa_ratio", steady(own, rule), off, 1 + rule.tolerance / 2, told))
    return tuple(lines)


def _speed_line(name: str, seen: RatioInterval, comparison: Comparison, rule: Rule, tail: str) -> Check:
    """The time per token; `tail` says why nothing is decided."""
    verdict = Verdict.INCONCLUSIVE if tail else slower(seen, rule, interleaved=comparison.interleaved)
    old, new = (median(side.launch_tokens_per_s[name]) for side in (comparison.baseline, comparison.candidate))
    note = f"time per token; 95% CI {seen.low:.3f} to {seen.high:.3f}; {new:,.4g} tokens/s, the baseline {old:,.4g}"
    return _line(f"{name}_ratio", verdict, seen.ratio, 1 + rule.tolerance, note + tail)


def _line(name: str, verdict: Verdict, ratio: float, limit: float, note: str) -> Check:
    return Check(
        name=name, verdict=verdict, unit="x", measured=ratio, limit=limit, provenance=Provenance.MEASURED, note=note
    )
