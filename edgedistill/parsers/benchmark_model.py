"""What TensorFlow Lite's and LiteRT's `benchmark_model` prints, of every version, on a console or in logcat.

Old builds tell no percentiles, a single sample tells nothing else, averages may stand in scientific notation. The first
`count=` line is the warm-up, the next one the measurement; TensorFlow's own tool adds one with statistics. Times are
microseconds; megabytes are the tool's own 2^20.
"""

from __future__ import annotations

import re

from edgedistill.errors import DataError
from edgedistill.parsers import op_profile
from edgedistill.parsers._text import NUMBER, lines_of, number, search, whole
from edgedistill.specs import Placement, Spec, Summary

MEBI = 2**20 / 1e6
_COUNT = re.compile(r"\bcount=(\d{1,12})\b(?=.*\b(?:curr|avg|median|first)=)")
_PAIR = re.compile(rf"\b(first|curr|min|max|avg|std|p5|median|p95)=({NUMBER})(?![\w.])")
_TIMINGS = re.compile(r"(?i)\b(?:average )?inference timings in us:\s*(.+)$")
SUMMARIES = ("Timings (microseconds)", "Memory (bytes)")  # of an operator profile
_FAILURE = re.compile(r"(?i)benchmarking failed|failed to (?:initialize|load|apply|build|map|invoke|open|read)"
                      r"|model file not found|could not open|^aborted|segmentation fault|cannot execute|not found$"
                      r"|no such file")  # fmt: skip


class BenchmarkRun(Spec):
    """One run, or the part of one that was kept. Memory is the process's, in MB of 10^6 bytes; None: not told."""

    inference: Summary | None
    warmup: Summary | None = None
    init_ms: float | None = None
    first_inference_ms: float | None = None
    model_size_mb: float | None = None
    init_memory_mb: float | None = None
    overall_memory_mb: float | None = None
    peak_memory_mb: float | None = None
    delegated: tuple[op_profile.Delegation, ...] = ()
    operators: tuple[op_profile.Operator, ...] = ()
    placement: tuple[Placement, ...] = ()


def parse(text: str) -> BenchmarkRun:
    """One run's log, or a part of it that holds the measurement.

    Raises:
        DataError: no measurement (with the tool's own reason, if it gives one), several runs, or impossible figures.
    """
    lines = lines_of(text)
    counts = [line for line in lines if _COUNT.search(line) and not line.lstrip().startswith(SUMMARIES)]
    timings = [found[1] for line in lines if (found := _TIMINGS.search(line))]
    if len(counts) == 3 and len(timings) == 1 and "with stats" in timings[0]:
        counts.pop()  # logging every operator slowed that one down
    if len(timings) > 1 or len(counts) > 2:
        runs = max(len(timings), (len(counts) + 1) // 2)
        raise DataError(f"holds {runs} runs of benchmark_model: give the log of one")
    told = _named(timings[0]) if timings else {}
    memory = any("footprint" in line and "(MB)" in line for line in lines)  # told after the measurement
    if not told and not counts and not memory:
        why = search(lines, _FAILURE.pattern)
        reason = f": {why.string.strip()[:200]}" if why else f"; its last line is {lines[-1].strip()[:120]!r}"
        raise DataError(f"no 'Inference timings' and no 'count=' line: the run did not end{reason}")
    if not told and len(counts) == 1:
        raise DataError("only one 'count=' line, the warm-up's: the run was cut off before it measured")
    inference = _summary(counts[-1]) if counts else None
    if inference is None and told:  # the average is told, the line of the runs was cut away
        inference = Summary(mean_ms=_positive(told, "inference"))
    warmup = _summary(counts[0]) if len(counts) == 2 else None
    if inference and counts:
        _agree(inference, told)
    operators = op_profile.operators(lines)
    delegated = op_profile.delegations(lines)
    return BenchmarkRun(
        inference=inference,
        warmup=warmup,
        init_ms=told.get("init", _initialized(lines)),
        first_inference_ms=told.get("first inference"),
        model_size_mb=_megabytes(lines, r"model file size \(MB\):\s*"),
        init_memory_mb=_megabytes(lines, r"(?:footprint.*\(MB\):.*\binit=|^Init footprint:\s*)", MEBI),
        overall_memory_mb=_megabytes(lines, r"(?:footprint.*\(MB\):.*\boverall=|^Overall footprint:\s*)", MEBI),
        peak_memory_mb=_megabytes(lines, r"(?:peak memory footprint \(MB\)[^:]*|^Peak memory usage[^:]*):\s*", MEBI),
        delegated=delegated,
        operators=operators,
        placement=op_profile.placement(operators, delegated),
    )


def _named(text: str) -> dict[str, float]:
    """`Init: 5579, First inference: 1357602, Warmup (avg): 1.3576e+06, Inference (avg): 1.24027e+06`, in ms."""
    found = re.findall(rf"(Init|First inference|Warmup|Inference|no stats)(?: \(avg\))?:\s*({NUMBER})(?![\w.])", text)
    named = {name.lower(): number(value, name) / 1e3 for name, value in found}
    if alone := re.match(rf"({NUMBER})\s*(?:,|$)", text):  # as the first version said it
        named.setdefault("inference", number(alone[1], "inference") / 1e3)
    if "no stats" in named:  # as TensorFlow 1 called it
        named.setdefault("inference", named["no stats"])
    if "inference" not in named:
        raise DataError(f"'Inference timings' without the average of the inferences: {text[:120]!r}")
    return named


def _summary(line: str) -> Summary:
    if re.search(r"(?i)=-?(?:nan|inf)", line):
        raise DataError(f"a time that is no number in {line.strip()[:120]!r}")
    count = _COUNT.search(line)
    values = {name: number(value, name) / 1e3 for name, value in _PAIR.findall(line)}
    runs = whole(count[1], "count", 1) if count else 1
    if "avg" not in values and values.keys() & {"first", "min", "max"}:
        raise DataError(f"a line without its average, which was cut off: {line.strip()[:120]!r}")
    mean = values.get("avg", values.get("curr" if "median" not in values else "median"))
    if mean is None or mean <= 0:
        raise DataError(f"no time above zero in {line.strip()[:120]!r}")
    # one sample, or equal ones, are told without their extremes
    alone = mean if "avg" not in values else None
    told = {"min_ms": values.get("min", alone), "max_ms": values.get("max", alone), "p5_ms": values.get("p5"),
            "p50_ms": values.get("median", alone), "p95_ms": values.get("p95", alone)}  # fmt: skip
    kept = {name: value for name, value in told.items() if value is not None and value > 0}
    std = values.get("std", 0.0 if alone is not None else None)
    if std is not None and std < 0:
        raise DataError(f"a standard deviation below zero in {line.strip()[:120]!r}")
    return Summary(count=runs, mean_ms=mean, std_ms=std, **kept)


def _agree(inference: Summary, told: dict[str, float]) -> None:
    """The last `count=` line and the timings tell the same average, but for its rounding to six digits."""
    average = told.get("inference")
    if average is not None and abs(average - inference.mean_ms) > 1e-3 * average + 1e-3:
        raise DataError(
            f"'Inference timings' tell {average:g} ms, the last 'count=' line {inference.mean_ms:g} ms: "
            "these are parts of different runs, or the log was cut"
        )


def _positive(told: dict[str, float], name: str) -> float:
    if told[name] <= 0:
        raise DataError(f"{name}: {told[name]:g} ms is no time")
    return told[name]


def _initialized(lines: list[str]) -> float | None:
    found = search(lines, rf"Initialized session in ({NUMBER}) ?ms")
    return number(found[1], "init") if found else None


def _megabytes(lines: list[str], pattern: str, unit: float = 1.0) -> float | None:
    found = search(lines, f"{pattern}({NUMBER})")
    return number(found[1], "memory") * unit if found else None
