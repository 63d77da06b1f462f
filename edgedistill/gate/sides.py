"""From measurements of two files to their comparison; figures that say nothing about each other are refused. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from edgedistill.errors import SpecError, StageError
from edgedistill.gate.regression import Rule, paired_interval, unpaired_interval
from edgedistill.specs import Comparison, Measurement, Provenance, RatioInterval, Side

Interval = Callable[[Sequence[float], Sequence[float]], RatioInterval]

BASELINE, CANDIDATE = "the baseline", "the candidate"


def check_comparable(baseline: Measurement, candidate: Measurement) -> None:
    """Refuse figures that say nothing about each other.

    Raises:
        SpecError: a figure is not measured, or device, OS build, runtime, threads, pinning or signature differ.
        StageError: a measurement has no launches.
    """
    for name, seen in ((BASELINE, baseline), (CANDIDATE, candidate)):
        if seen.provenance is not Provenance.MEASURED:
            raise SpecError(f"{name} is {seen.provenance.value}, and only measured latencies are compared.")
        if not seen.launch_medians_ms:
            raise StageError(f"{name} has no launches.")
        if min(seen.launch_medians_ms) <= 0:
            raise SpecError(f"{name} has a launch of {min(seen.launch_medians_ms):g} ms: not a time. Measure it again.")
    old, new = _identity(baseline), _identity(candidate)
    for what, mine in new.items():
        seen_before = old.get(what, "not recorded")
        if seen_before != mine:
            raise SpecError(
                f"{BASELINE} was measured with another {what}: {seen_before!r}, {CANDIDATE} with {mine!r}. "
                "Measure both on one device in one session: --baseline BUNDLE."
            )


def _identity(seen: Measurement) -> dict[str, str | int]:
    """Everything that must be equal before two latencies are compared."""
    told = seen.fingerprint
    if told is None:
        return {
            "device": seen.device,
            "OS build": os_build(seen),
            "runtime": seen.runtime,
            "number of threads": seen.threads,
            "signature": seen.signature,
        }
    return {
        "kind of device": told.runner,
        "device": f"{told.model} {told.device_id[:12]}",
        "OS build": told.os_build,
        "processor": told.cpu,
        "runtime": f"{told.runtime} {told.runtime_version}",
        "number of threads": told.threads,
        "core mask": told.core_mask,
        "emulator": told.emulator,
        "signature": seen.signature,
    }


def os_build(seen: Measurement) -> str:
    """The device's OS build; `not recorded` where the runner wrote none down."""
    return seen.fingerprint.os_build if seen.fingerprint else str(seen.context.get("kernel", "not recorded"))


def joined(parts: Sequence[Measurement]) -> Measurement:
    """One measurement of all launches of several (> 0) of the same file under the same circumstances, in their order.

    Times of a launch are medians over the parts, memory is the highest seen; `context` and what was not taken for each
    launch is the last part's.
    """
    last = parts[-1]
    return last.model_copy(
        update={
            "samples_ms": tuple(value for part in parts for value in part.samples_ms),
            "launch_counts": tuple(value for part in parts for value in part.launch_counts),
            "launch_medians_ms": tuple(value for part in parts for value in part.launch_medians_ms),
            "launches": tuple(value for part in parts for value in part.launches),
            "unfit": tuple(dict.fromkeys(value for part in parts for value in part.unfit)),
            "first_inference_ms": _median([part.first_inference_ms for part in parts]),
            "load_ms": _median([part.load_ms for part in parts]),
            "peak_memory_mb": max((part.peak_memory_mb for part in parts if part.peak_memory_mb), default=None),
        }
    )


def _median(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return median(told) if told else None


def compared(
    baseline: Measurement,
    candidate: Measurement,
    rule: Rule,
    *,
    interleaved: bool,
    again: Measurement | None = None,
) -> Comparison:
    """The comparison of two measurements; interleaved ones have their launches in the order of the pairs.

    Raises:
        SpecError: they are not comparable, or a launch does not tell a speed that others tell.
        StageError: interleaved measurements have different numbers of launches.
    """
    check_comparable(baseline, candidate)
    if interleaved and len(baseline.launch_medians_ms) != len(candidate.launch_medians_ms):
        raise StageError("the device left launches without a partner: they are no pairs.")
    interval = paired_interval if interleaved else unpaired_interval
    return Comparison(
        device=candidate.device,
        os_build=os_build(candidate),
        runtime=candidate.runtime,
        signature=candidate.signature,
        threads=candidate.threads,
        interleaved=interleaved,
        tolerance=rule.tolerance,
        latency=interval(baseline.launch_medians_ms, candidate.launch_medians_ms),
        speeds=_speeds(baseline, candidate, interval),
        itself=paired_interval(baseline.launch_medians_ms, again.launch_medians_ms) if again else None,
        baseline=Side.of(baseline),
        candidate=Side.of(candidate),
        again=Side.of(again) if again else None,
        unfit=tuple(dict.fromkeys((*baseline.unfit, *candidate.unfit))),
    )


def _speeds(baseline: Measurement, candidate: Measurement, interval: Interval) -> dict[str, RatioInterval]:
    """The times per token, reading and writing, of two files that make text; empty for others."""
    names = sorted({*baseline.tokens_per_s, *candidate.tokens_per_s}, reverse=True)  # what is read comes first
    return {
        name: interval(_times_per_token(BASELINE, baseline, name), _times_per_token(CANDIDATE, candidate, name))
        for name in names
    }


def _times_per_token(side: str, seen: Measurement, name: str) -> list[float]:
    told = [launch.tokens_per_s.get(name, 0.0) for launch in seen.launches]
    if len(told) != len(seen.launch_medians_ms) or min(told) <= 0:
        raise SpecError(f"{side} has a launch that does not tell its tokens per second ({name}). Measure it again.")
    return [1 / value for value in told]
