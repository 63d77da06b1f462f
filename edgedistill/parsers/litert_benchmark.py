"""`litert-benchmark` of the ai-edge-litert package: its `--result_json` file, or what it prints. LiteRT's own
`benchmark_model` ends with the same block, by itself where the rest was cut away. Rounded to 0.01 ms.
"""

from __future__ import annotations

import re
from typing import Any

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, as_number, lines_of, load_json, number
from edgedistill.specs import Spec, Summary

RESOLUTION_MS = 0.01
_LINE = re.compile(
    rf"^\s*(?:Inference|Warmup|Model) ?\(?([a-z0-9]+)\)?:\s*({NUMBER})(?: ms)?(?: \((\d{{1,9}}) runs\))?\s*$"
)


class LiteRTBenchmark(Spec):
    """One run. `accelerators` and `fully_accelerated` are what was asked for and whether all of the graph went there.

    Figures that the tool rounds to 0.00 are None.
    """

    model: str
    signature: str
    accelerators: tuple[str, ...]
    fully_accelerated: bool | None
    threads: int | None
    inference: Summary
    init_ms: float | None
    first_inference_ms: float | None
    warmup_ms: float | None


def parse(text: str) -> LiteRTBenchmark:
    """Either form.

    Raises:
        DataError: it is neither, or was cut off.
    """
    return _from_json(load_json(text)) if text.lstrip()[:1] in ("{", "[") else _from_text(text)


def _from_json(value: Any) -> LiteRTBenchmark:
    latency = value.get("latency") if isinstance(value, dict) else None
    if not isinstance(latency, dict):
        raise DataError("no 'latency' object: not a result of litert-benchmark")
    told = {key: as_number(item, f"latency.{key}") for key, item in latency.items() if item is not None}
    threads = value.get("num_threads")
    named = value.get("accelerators")
    accelerated = value.get("fully_accelerated")
    return LiteRTBenchmark(
        model=str(value.get("model", "")),
        signature=str(value.get("signature", "")),
        accelerators=tuple(map(str, named)) if isinstance(named, list) else (),
        fully_accelerated=accelerated if isinstance(accelerated, bool) else None,
        threads=threads if isinstance(threads, int) and not isinstance(threads, bool) else None,
        inference=_summary({key.removesuffix("_ms"): item for key, item in told.items()}, told.get("num_runs")),
        init_ms=told.get("init_ms"),
        first_inference_ms=told.get("warmup_first_ms"),
        warmup_ms=told.get("warmup_avg_ms"),
    )


def _from_text(text: str) -> LiteRTBenchmark:
    lines = lines_of(text)
    told: dict[str, float] = {}
    runs = None
    for line in lines:
        found = _LINE.match(line)
        if not found:
            continue
        key = f"warmup_{found[1]}" if line.lstrip().startswith("Warmup") else found[1]
        told[key] = number(found[2], key)
        if key == "avg" and found[3]:
            runs = float(found[3])
    if sum(line.lstrip().startswith("Inference (avg)") for line in lines) > 1:
        raise DataError("holds more than one run: give the output of one")
    accelerated = re.search(r"Fully accelerated:\s*(True|False)", text)
    signature = re.search(r"Signature name:\s*(\S+)", text)
    return LiteRTBenchmark(
        model="",
        signature=signature[1] if signature else "",
        accelerators=(),
        fully_accelerated=accelerated[1] == "True" if accelerated else None,
        threads=None,
        inference=_summary(told, runs),
        init_ms=told.get("initialization"),
        first_inference_ms=told.get("warmup_first"),
        warmup_ms=told.get("warmup_avg"),
    )


def _summary(told: dict[str, float], runs: float | None) -> Summary:
    mean = told.get("avg", 0.0) or told.get("median", 0.0)
    if mean <= 0:
        raise DataError(f"no average inference above zero (the tool rounds to {RESOLUTION_MS} ms), or a run cut off")
    if runs is not None and (runs < 1 or runs != int(runs)):
        raise DataError(f"num_runs = {runs:g}: no inference was timed")
    names = {"min": "min_ms", "max": "max_ms", "p5": "p5_ms", "median": "p50_ms", "p95": "p95_ms"}
    kept = {names[key]: value for key, value in told.items() if key in names and value > 0}
    std = told.get("std")
    return Summary(
        count=int(runs) if runs else None, mean_ms=mean, std_ms=std if std is None or std >= 0 else None, **kept
    )
