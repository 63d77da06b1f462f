"""What the report says first: does the build meet its budget on this target, and what is not known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edgedistill.report.data import ReportData
from edgedistill.report.text import clean, figure, limited, listing, percent
from edgedistill.specs import Check, Verdict

TITLES = {
    "size_mb": "File size",
    "latency_p95_ms": "Latency (p95)",
    "peak_memory_mb": "Peak memory",
    "energy_mj": "Energy per inference",
    "first_load_ms": "First load",
    "sustained_latency_p95_ms": "Latency (p95) under sustained load",
    "battery_percent_per_hour": "Battery per hour, at one inference a second",
    "first_token_ms": "Time to the first token",
    "prefill_tokens_per_s": "Speed of reading",
    "decode_tokens_per_s": "Speed of writing",
    "latency_ratio": "Latency against the baseline",
    "latency_ratio_min": "Plausible speed against the baseline",
    "prefill_ratio": "Time per token read against the baseline",
    "decode_ratio": "Time per token written against the baseline",
    "aa_ratio": "Baseline against itself",
    "off_unit_time_share": "Time off the requested unit",
    "off_unit_operators_share": "Operators off the requested unit",
    "retained_min": "Accuracy kept from the teacher",
    "accuracy_min": "Accuracy",
    "argmax_agreement_min": "Same answers as the trained student",
    "codes_max_difference": "Change of weight codes",
    "scales_max_difference": "Change of weight scales",
}
RATIO = "x"  # the unit of a ratio
SHARES = frozenset(
    ("retained_min", "accuracy_min", "argmax_agreement_min", "off_unit_time_share", "off_unit_operators_share")
)


def on_host(data: ReportData) -> bool:
    """True when the target is the machine that built: then its own measurements count."""
    return data.plan.target.runner == "host"


def where(data: ReportData) -> str:
    """The target's name within a sentence."""
    return "this machine" if on_host(data) else clean(data.plan.target.title)


def title(name: str) -> str:
    """The words for a line of the gate."""
    return TITLES.get(name, clean(name))


def value(name: str, number: float | None, unit: str) -> str:
    """A figure of that line: shares as percentages, the rest with its unit."""
    if unit == RATIO and number is not None:
        return f"{number:.3f}×"  # a tolerance of 5 % is not seen in three digits
    return percent(number, 2) if name in SHARES else figure(number, unit)


def limit_of(check: Check) -> str:
    """`≤ 10 ms`: the limit as it was written, with its direction."""
    if check.unit == RATIO:
        return f"{check.relation} {check.limit:g}×"
    text = percent(check.limit, 2) if check.name in SHARES else limited(check.limit, check.unit)
    return f"{check.relation} {text}"


def headline(data: ReportData) -> dict[str, Any]:
    """The first thing a reader sees: does it meet the budget on this target, and what is not known."""
    checks, place = data.gate.checks, where(data)
    passed = sum(check.verdict is Verdict.PASS for check in checks)
    failed = [check for check in checks if check.verdict is Verdict.FAIL]
    unknown = [check for check in checks if check.verdict in (Verdict.INCONCLUSIVE, Verdict.UNMEASURED)]
    if failed:
        why = listing([missed(check) for check in failed]) + (f"; {open_lines(unknown, place)}" if unknown else "")
        sentence = f"This build does not meet its budget on {place}: {why}."
        return {"tone": "bad", "word": "No", "sentence": sentence, "more": _unknown(data, unknown)}
    if unknown:
        sentence = f"{passed} of {len(checks)} lines pass and none fails, but {open_lines(unknown, place)}."
        return {"tone": "open", "word": "Not proven", "sentence": sentence, "more": _unknown(data, unknown)}
    sentence = f"This build meets its budget on {place}: all {len(checks)} lines pass."
    return {"tone": "good", "word": "Yes", "sentence": sentence, "more": []}


def open_lines(checks: Sequence[Check], place: str) -> str:
    """`latency (p95) and energy were not measured on Pixel 8, and peak memory is not decided`."""
    told = []
    for verdict, one, many in (
        (Verdict.UNMEASURED, f"was not measured on {place}", f"were not measured on {place}"),
        (Verdict.INCONCLUSIVE, "was measured without a clear result", "were measured without a clear result"),
    ):
        names = [_lower(title(check.name)) for check in checks if check.verdict is verdict]
        if names:
            told.append(f"{listing(names)} {one if len(names) == 1 else many}")
    return ", and ".join(told)


def missed(check: Check) -> str:
    """`file size is 9 MB, the limit is ≤ 8 MB`."""
    seen, limit = value(check.name, check.measured, check.unit), limit_of(check)
    return f"{_lower(title(check.name))} is {seen}, the limit is {limit}"


def _lower(words: str) -> str:
    return words[:1].lower() + words[1:]


def _unknown(data: ReportData, checks: Iterable[Check]) -> list[str]:
    """What is known instead about lines that are not decided; a prediction is named as one."""
    told = []
    predictions = {item.quantity: item for item in data.plan.chosen.predictions}
    for check in checks:
        item, name = predictions.get(check.name), title(check.name)
        limit = f"limit {limited(check.limit, check.unit)}"
        if check.verdict is Verdict.INCONCLUSIVE:
            seen = f"measured {figure(check.measured, check.unit)}, too uncertain to decide"
        elif item is None:
            seen = "neither measured nor predicted"
        else:
            spread = f"{figure(item.low)} to {figure(item.high, item.unit)}"
            share = percent(item.confidence, 0)
            seen = f"not measured; predicted {figure(item.median, item.unit)} ({share} interval {spread})"
        told.append(f"{name}: {seen}; {limit}")
    return told
