"""The budget's lines that take a measurement on the target itself: latency, memory, energy, speed of text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import ceil, exp, inf, log, sqrt
from statistics import fmean, median, stdev

from edgedistill.errors import StageError
from edgedistill.specs import Check, Measurement, Provenance, Target, Verdict

# Student's t, two-sided 95 %, by degrees of freedom; the last one stands for all above it, which only widens.
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
LAUNCHES_MIN = 3  # fewer launches say nothing about the noise between them
TEXT_LINES = ("first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s")
SAMPLES_MIN = 100  # 5 of them lie beyond the 95th percentile


def p95_bounds(measurement: Measurement) -> tuple[float, float]:
    """95% bounds of a launch's 95th percentile of latency, in ms, with the launch as the unit.

    Noise lies between processes more than between inferences, so pooled inferences would claim far too much. Student's
    t on the logarithm of each launch's own percentile; of 3 simulated launches with 1 to 4% noise between them, its
    upper bound held in 98 to 99 of 100 cases, that of a bootstrap over launches in 93. The pooled percentile is always
    inside. One launch bounds nothing: (0, inf).
    """
    low, high = bounds_of([_p95(launch) for launch in _by_launch(measurement)])
    pooled = measurement.latency_p95_ms
    return min(low, pooled), max(high, pooled)


def bounds_of(launches: Sequence[float]) -> tuple[float, float]:
    """95% bounds of a positive figure of which each launch tells one, by t on the logarithms; (0, inf) of one."""
    if len(launches) < 2:
        return 0.0, inf
    logs = [log(max(value, 1e-9)) for value in launches]
    centre = fmean(logs)
    spread = T_QUANTILES[min(len(logs) - 1, max(T_QUANTILES))] * stdev(logs) / sqrt(len(logs))
    return exp(centre - spread), exp(centre + spread)


def _p95(values: Sequence[float]) -> float:
    """The smallest value that at least 95% of the values do not exceed."""
    return sorted(values)[ceil(0.95 * len(values)) - 1]


def _by_launch(measurement: Measurement) -> list[tuple[float, ...]]:
    counts = measurement.launch_counts
    if not counts or sum(counts) != len(measurement.samples_ms):
        return [measurement.samples_ms]
    starts = [sum(counts[:index]) for index in range(len(counts))]
    return [measurement.samples_ms[start : start + count] for start, count in zip(starts, counts, strict=True) if count]


def why_unmeasured(target: Target, name: str, seen: Measurement | None) -> str:
    """Why no figure of the right kind exists for this line; empty when one does."""
    if seen is None or (target.runner != "host" and _runner(seen) == "host"):
        return "this machine was not measured" if target.runner == "host" else f"no {target.title} was measured"
    if seen.provenance is not Provenance.MEASURED:
        return f"{seen.provenance.value} on {seen.device}, and only a measurement counts"
    if _runner(seen) != target.runner or not _is_the_target(target, seen):
        return f"measured on {seen.device}, which is not known to be a {target.title}"
    if seen.unfit:
        return f"measured on {seen.device} when it was not fit: {'; '.join(seen.unfit)}"
    if seen.threads != target.threads:
        return f"measured with {seen.threads} threads, the target runs {target.threads}"
    if name in TEXT_LINES and not (seen.tokens_per_s and all(_text_figures(seen, name))):
        return f"{seen.signature} was timed, which makes no text or does not tell how fast"
    if name == "latency_p95_ms" and "decode" in seen.tokens_per_s:
        return f"{seen.signature} was timed, a text; its lines are {', '.join(TEXT_LINES)}"
    if name == "latency_p95_ms" and not seen.samples_ms:
        return f"{seen.runtime} keeps no samples, so nothing bounds its 95th percentile"
    if name == "energy_mj" and (seen.energy is None or seen.energy.energy_mj is None):
        return f"no power meter{f': {seen.energy.note}' if seen.energy and seen.energy.note else ''}"
    if name == "peak_memory_mb" and seen.peak_memory_mb is None:
        return f"{seen.runtime} does not tell its peak memory"
    return ""


def _runner(seen: Measurement) -> str:
    return seen.fingerprint.runner if seen.fingerprint else "host"


def _is_the_target(target: Target, seen: Measurement) -> bool:
    """Whether the device calls itself as the target says that such a device does; a host target is any host."""
    if target.runner == "host":
        return True
    return seen.fingerprint is not None and any(fnmatchcase(seen.fingerprint.model, name) for name in target.models)


def latency(host: Measurement, limit: float) -> Check:
    """The 95th percentile, decided when its bounds are on one side of the limit."""
    launches = len(_by_launch(host))
    low, high = 0.0, inf
    if launches < LAUNCHES_MIN or len(host.samples_ms) < SAMPLES_MIN:
        seen = f"{launches} launches and {len(host.samples_ms)} inferences"
        note = f"{seen}; deciding needs {LAUNCHES_MIN} and {SAMPLES_MIN}"
    else:
        low, high = p95_bounds(host)
        note = f"95% CI {low:.3g} to {high:.3g} ms over {launches} launches, {len(host.samples_ms)} inferences"
    return _check("latency_p95_ms", "ms", host.latency_p95_ms, (low, high), note, limit)


def memory(host: Measurement, limit: float) -> Check:
    """The measured process carries Python too: the truth lies between what loading the file added and the whole."""
    peak, baseline = host.peak_memory_mb, host.baseline_memory_mb or 0.0
    if peak is None:
        raise StageError("the measurement holds no peak memory")
    added = peak - baseline
    note = f"whole process with Python; {added:.3g} MB of it since the file was loaded"
    return _check("peak_memory_mb", "MB", peak, (added, peak), note, limit)


def energy(seen: Measurement, limit: float) -> Check:
    """Known to within what the meter can tell apart."""
    metered = seen.energy
    if metered is None or metered.energy_mj is None:
        raise StageError("the measurement holds no energy")
    found, step = metered.energy_mj, metered.resolution_mj or 0.0
    low = found - step if metered.low_mj is None else min(found, metered.low_mj)
    high = found + step if metered.high_mj is None else max(found, metered.high_mj)
    seen_by = f"{metered.source or 'meter not named'}, {metered.covers or 'whole device'}"
    return _check("energy_mj", "mJ", found, (low, high), f"{low:.3g} to {high:.3g} mJ by {seen_by}", limit)


def first_token(seen: Measurement, limit: float) -> Check:
    """The median time to the first token, with a launch's median as one observation."""
    found = _text_figures(seen, "first_token_ms")
    return _check("first_token_ms", "ms", median(found), *_of_launches(found, "ms", seen), limit)


def speed(seen: Measurement, name: str, limit: float) -> Check:
    """Tokens per second, at least `limit`; each launch tells its median."""
    found = _text_figures(seen, name)
    return _check(name, "tokens/s", median(found), *_of_launches(found, "tokens/s", seen), limit)


def _text_figures(seen: Measurement, name: str) -> list[float]:
    """One figure for each launch; 0 where it tells none."""
    if name == "first_token_ms":
        return list(seen.launch_medians_ms)
    return [launch.tokens_per_s.get(name.removesuffix("_tokens_per_s"), 0.0) for launch in seen.launches]


def _of_launches(found: Sequence[float], unit: str, seen: Measurement) -> tuple[tuple[float, float], str]:
    """The bounds and what to say about them."""
    if len(found) < LAUNCHES_MIN:
        return (0.0, inf), f"{len(found)} launches; deciding needs {LAUNCHES_MIN}"
    low, high = bounds_of(found)
    told = " to ".join(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (low, high))
    return (low, high), f"{seen.signature}; 95% CI {told} {unit} over {len(found)} launches"


def _check(name: str, unit: str, measured: float, bounds: tuple[float, float], note: str, limit: float) -> Check:
    """A line that is decided when both bounds of the truth are on one side of the limit."""
    low, high = bounds
    check = Check(
        name=name, verdict=Verdict.INCONCLUSIVE, unit=unit, measured=measured, limit=limit,
        provenance=Provenance.MEASURED, note=note,
    )  # fmt: skip
    good, bad = (low >= limit, high < limit) if check.relation == "≥" else (high <= limit, low > limit)
    return (
        check.model_copy(update={"verdict": Verdict.PASS})
        if good
        else (check.model_copy(update={"verdict": Verdict.FAIL}) if bad else check)
    )
