"""What `onnxruntime_perf_test` prints: averages in ms, percentiles in seconds, memory in bytes."""

from __future__ import annotations

import re

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, lines_of, number, whole
from edgedistill.specs import Spec, Summary

_LINE = re.compile(rf"^\s*([A-Z][A-Za-z0-9 ]{{2,40}}?)(?::| is)\s*({NUMBER})\s*(ms|sec|s|%|bytes)?\s*$")
MILLI = {"ms": 1.0, "s": 1e3, "sec": 1e3, "": 1e3}  # old versions leave the seconds of a percentile out


class OrtPerfTest(Spec):
    """One run; None: not told. `percentiles_ms` are in `inference` as far as it has them; P90 and P99 stand here."""

    inference: Summary
    session_ms: float | None = None
    first_inference_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    peak_memory_mb: float | None = None
    cpu_percent: float | None = None


def parse(text: str) -> OrtPerfTest:
    """One run's output.

    Raises:
        DataError: no average, or the output of several runs.
    """
    told: dict[str, tuple[float, str]] = {}
    lines = lines_of(text)
    for line in lines:
        if found := _LINE.match(line):
            key = found[1].lower()
            if key in told and told[key][0] != number(found[2], key):
                raise DataError(f"{found[1]!r} stands there twice: give the output of one run")
            told[key] = (number(found[2], key), found[3] or "")
    mean = _ms(told, "average inference time cost", "ms")
    if mean is None or mean <= 0:
        raise DataError(f"no 'Average inference time cost' above zero; its last line is {lines[-1].strip()[:120]!r}")
    runs = told.get("runs", told.get("total inference requests", (0.0, "")))[0]
    kept = {name: _ms(told, f"{word} latency", "s") for name, word in
            (("min_ms", "min"), ("max_ms", "max"), ("p50_ms", "p50"), ("p95_ms", "p95"))}  # fmt: skip
    peak = told.get("peak working set size")
    return OrtPerfTest(
        inference=Summary(
            count=whole(f"{runs:g}", "runs", 1) if runs else None,
            mean_ms=mean,
            **{name: value for name, value in kept.items() if value is not None and value > 0},
        ),
        session_ms=_ms(told, "session creation time cost", "s"),
        first_inference_ms=_ms(told, "first inference time cost", "ms"),
        p90_ms=_ms(told, "p90 latency", "s"),
        p99_ms=_ms(told, "p99 latency", "s"),
        peak_memory_mb=peak[0] / 1e6 if peak else None,
        cpu_percent=told["avg cpu usage"][0] if "avg cpu usage" in told else None,
    )


def _ms(told: dict[str, tuple[float, str]], key: str, usual: str) -> float | None:
    if key not in told:
        return None
    value, unit = told[key]
    factor = MILLI.get(unit or usual)
    if factor is None or value < 0:
        raise DataError(f"{key}: {value:g} {unit} is no time")
    return value * factor
