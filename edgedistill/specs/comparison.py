"""A candidate against a baseline on one device, launch by launch, and the document in which a gate reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from edgedistill.specs.base import Spec
from edgedistill.specs.results import Check, GateResult, Measurement, Verdict

REPORT_VERSION: Literal[1] = 1


class RatioInterval(Spec):
    """A ratio of two latencies with its confidence interval; 1 is no change, 1.1 is 10 % slower."""

    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int


class Side(Spec):
    """One of the files that were compared.

    `quantiles_ms` are the 0th to 100th percentile of all inferences, empty for a tool that keeps no samples;
    `sustained_ms` are the medians of a long run's windows, where there was one. `launch_peaks_mb` and, where text is
    made, `launch_tokens_per_s` have a figure for each launch that tells one.
    """

    artifact_sha256: str
    launch_medians_ms: tuple[float, ...]
    quantiles_ms: tuple[float, ...] = ()
    first_inference_ms: float | None = None
    load_ms: float | None = None
    peak_memory_mb: float | None = None
    sustained_ms: tuple[float, ...] = ()
    launch_peaks_mb: tuple[float, ...] = ()
    launch_tokens_per_s: Mapping[str, tuple[float, ...]] = {}

    @classmethod
    def of(cls, seen: Measurement) -> Side:
        """What a reader and a plot need of a measurement, without its samples."""
        ordered = seen.model_copy(update={"samples_ms": tuple(sorted(seen.samples_ms))})  # so that it is sorted once
        return cls(
            artifact_sha256=seen.artifact_sha256,
            launch_medians_ms=seen.launch_medians_ms,
            quantiles_ms=tuple(ordered.quantile_ms(percent / 100) for percent in range(101)) if seen.samples_ms else (),
            first_inference_ms=seen.first_inference_ms,
            load_ms=seen.load_ms,
            peak_memory_mb=seen.peak_memory_mb,
            sustained_ms=seen.sustained.curve_ms if seen.sustained else (),
            launch_peaks_mb=tuple(item.peak_rss_mb for item in seen.launches if item.peak_rss_mb),
            launch_tokens_per_s={
                key: tuple(item.tokens_per_s[key] for item in seen.launches if key in item.tokens_per_s)
                for key in sorted(seen.tokens_per_s)
            },
        )


class Comparison(Spec):
    """How long a candidate takes where a baseline takes some time: one device, one signature.

    `interleaved` is false when the launches were not taken in turns; then they are not pairs, and the interval holds
    the noise between launches but not that between sessions. `itself` is the baseline against the baseline, in the
    same minutes. `speeds` are, of files that make text, the times per token that is read ("prefill") and written
    ("decode"); `latency` is then that to the first token. `unfit`: why the device was in no state to be measured; then
    nothing is decided.
    """

    device: str
    os_build: str
    runtime: str
    signature: str
    threads: int
    interleaved: bool
    tolerance: float
    latency: RatioInterval
    speeds: Mapping[str, RatioInterval] = {}
    itself: RatioInterval | None = None
    baseline: Side
    candidate: Side
    again: Side | None = None
    unfit: tuple[str, ...] = ()


class GateReport(Spec):
    """Everything that one run of the gate decided, for machines; `exit_code` is what the command ended with. `measured`
    is what a file that belongs to no bundle was judged on.
    """

    schema_version: Literal[1] = REPORT_VERSION
    edgedistill_version: str
    bundle: str
    baseline: str | None = None
    target: str
    verdict: Verdict
    exit_code: int
    checks: tuple[Check, ...]
    comparison: Comparison | None = None
    measured: Side | None = None

    @property
    def result(self) -> GateResult:
        """The lines as the gate has them."""
        return GateResult(target=self.target, checks=self.checks)


class CompareLine(Spec):
    """One quantity of two builds. `change` with its interval is B / A; for a share (unit "") it is B - A.

    `low` and `high` are None where the figure comes without its noise.
    """

    name: str
    unit: str
    a: float | None
    b: float | None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Literal["better", "worse", "same", "not decided", "not comparable"]
    note: str = ""


class CompareReport(Spec):
    """Two builds, or two measurements, side by side. It passes and fails nothing."""

    schema_version: Literal[1] = REPORT_VERSION
    edgedistill_version: str
    a: str
    b: str
    tolerance: float
    lines: tuple[CompareLine, ...]
    comparison: Comparison | None = None
