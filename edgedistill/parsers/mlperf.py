"""MLPerf LoadGen's `mlperf_log_summary.txt`: latency percentiles of the single-stream scenario, in ns."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, lines_of, number
from edgedistill.specs import Spec


class MlperfSummary(Spec):
    """One run. `percentiles_ms` by percent. `queries` is None where LoadGen does not count them."""

    sut: str
    scenario: str
    mode: str
    valid: bool
    reasons: tuple[str, ...]
    percentiles_ms: Mapping[float, float]
    mean_ms: float | None
    min_ms: float | None
    max_ms: float | None
    queries: int | None


def parse(text: str) -> MlperfSummary:
    """A summary, valid or not: `valid` says which, and `reasons` why not.

    Raises:
        DataError: it is no summary, or holds no latency.
    """
    lines = lines_of(text)
    facts: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            facts.setdefault(key.strip().lower(), value.strip())
    if "scenario" not in facts or "result is" not in facts:
        raise DataError("no 'Scenario' and 'Result is' line: not mlperf_log_summary.txt")
    percentiles: dict[float, float] = {}
    for key, value in facts.items():
        if found := re.fullmatch(rf"({NUMBER})(?:th|st|nd|rd)? percentile latency \(ns\)", key):
            percentiles.setdefault(number(found[1]), number(value, key) / 1e6)
    extremes = {word: facts.get(f"{word} latency (ns)") for word in ("min", "max", "mean")}
    if not percentiles and not extremes["mean"]:
        raise DataError(f"no latency in it: scenario {facts['scenario'][:40]!r} is read for single stream only")
    spent = {word: number(value, word) / 1e6 if value else None for word, value in extremes.items()}
    queries = re.search(r"Processed at least \d+ queries \((\d{1,12})\)", text)
    verdict = facts["result is"].upper()
    return MlperfSummary(
        sut=facts.get("sut name", ""),
        scenario=facts["scenario"],
        mode=facts.get("mode", ""),
        valid=verdict == "VALID",
        reasons=tuple(f"{key}: {value}" for key, value in facts.items() if key.endswith("satisfied") and value == "NO")
        + tuple(line.strip() for line in lines if line.strip().startswith("* Need to")),
        percentiles_ms=percentiles,
        mean_ms=spent["mean"],
        min_ms=spent["min"],
        max_ms=spent["max"],
        queries=int(queries[1]) if queries else None,
    )
