"""The performance summary of TensorRT's `trtexec`, of TensorRT 7 to 10."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, lines_of, number
from edgedistill.specs import Spec, Summary

_FACT = re.compile(rf"(min|max|mean|median|percentile\((\d{{1,2}}(?:\.\d+)?)%\))\s*[=:]\s*({NUMBER}) ms")
_STAMP = re.compile(r"^(?:\[[\d/]+-[\d:]+\] )?\[[VIWE]\] ")


class TrtexecSummary(Spec):
    """One run. `latency` is from the host's side, copies included; `gpu` is the GPU's work alone. `percentiles_ms` are
    of the latency, by percent.
    """

    latency: Summary
    gpu: Summary | None = None
    percentiles_ms: Mapping[float, float] = {}
    throughput_per_s: float | None = None


def parse(text: str) -> TrtexecSummary:
    """One run's output.

    Raises:
        DataError: it failed, holds several summaries, or none.
    """
    lines = [_STAMP.sub("", line) for line in lines_of(text)]
    failed = next((line for line in lines if "&&&& FAILED" in line), None)
    if failed:
        raise DataError(f"trtexec failed: {failed.strip()[:160]!r}")
    told: dict[str, dict[str, float]] = {}
    for line in lines:
        found = re.match(r"^\s*(Latency|GPU Compute(?: Time)?):\s*(.*)$", line)
        if not found or not _FACT.search(found[2]):
            continue
        name = found[1].partition(" ")[0]
        if name in told:
            raise DataError(f"{found[1]!r} stands there twice: give the output of one run")
        told[name] = {(rank or word): number(value, word) for word, rank, value in _FACT.findall(found[2])}
    if "Latency" not in told:
        raise DataError(
            "no 'Latency: min = …' line: trtexec did not end, or ran with --noDataTransfers of an old version"
        )
    rate = next((found for line in lines if (found := re.match(rf"^\s*Throughput:\s*({NUMBER}) qps", line))), None)
    ranks = {float(name): value for name, value in told["Latency"].items() if re.fullmatch(r"[\d.]+", name)}
    return TrtexecSummary(
        latency=_summary(told["Latency"]),
        gpu=_summary(told["GPU"]) if "GPU" in told else None,
        percentiles_ms=ranks,
        throughput_per_s=number(rate[1]) if rate else None,
    )


def _summary(told: dict[str, float]) -> Summary:
    mean = told.get("mean", 0.0)
    if mean <= 0:
        raise DataError("no mean above zero in the summary: it was cut off")
    names = {"min_ms": "min", "max_ms": "max", "p50_ms": "median", "p95_ms": "95"}
    kept: dict[str, Any] = {name: told[word] for name, word in names.items() if told.get(word, 0.0) > 0}
    return Summary(mean_ms=mean, **kept)
