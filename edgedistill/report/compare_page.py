"""A comparison of two builds as files: JSON, Markdown, HTML, PNG and PDF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedistill.report.gate_page import MARKS, Page, context
from edgedistill.report.headline import title
from edgedistill.report.race_plots import panels
from edgedistill.report.text import NOT_KNOWN, figure, listing, percent
from edgedistill.specs import CompareLine, CompareReport

TONES = {"better": "good", "worse": "bad", "same": "good", "not decided": "open", "not comparable": "open"}
WORDS = {"latency_p50_ms": "Latency (p50)", "accuracy": "Accuracy"}


def write_comparison(folder: Path, report: CompareReport) -> list[Path]:
    """Write compare.json, compare.md, compare.html and, where there are plots, comparison.png and comparison.pdf.

    Raises:
        InfrastructureError: the folder cannot be written to.
    """
    document = f"{report.model_dump_json(indent=1)}\n"
    return compare_page(report).write(folder, "compare", {"compare.json": document})


def compare_page(report: CompareReport) -> Page:
    """The page of a comparison."""
    texts = {
        "eyebrow": "edgedistill compare",
        "title": f"{_name(report.b)} against {_name(report.a)}",
        "headline": _headline(report),
        "table": {
            "title": "Line by line",
            "columns": ("Line", "Verdict", "A", "B", "Change", "95% interval", "Note"),
            "figures": ("A", "B", "Change", "95% interval"),
            "rows": [
                {"title": _title(line), "tone": TONES[line.verdict], "cells": cells(line)} for line in report.lines
            ],
        },
        "context": context(report.comparison) if report.comparison else "",
        "facts": [("A, baseline", report.a), ("B, candidate", report.b), ("tolerance", percent(report.tolerance)),
                  ("edgedistill", report.edgedistill_version)],
        "version": report.edgedistill_version,
    }  # fmt: skip
    return Page(texts, panels((), report.comparison))


def cells(line: CompareLine) -> list[tuple[str, str]]:
    """A line's figures as texts, in the order of the table."""
    share = line.unit == ""
    seen = [percent(value, 2) if share else figure(value, line.unit) for value in (line.a, line.b)]
    low = _change(line.low, share).removesuffix(" points")
    interval = f"{low} to {_change(line.high, share)}" if line.low is not None else NOT_KNOWN
    return [
        ("Verdict", line.verdict), ("A", seen[0]), ("B", seen[1]), ("Change", _change(line.change, share)),
        ("95% interval", interval), ("Note", line.note),
    ]  # fmt: skip


def _change(value: float | None, share: bool) -> str:
    if value is None:
        return NOT_KNOWN
    if share:
        return f"{100 * value:+.2f} points"
    return f"{figure(value)}×" if value >= 2 else f"{100 * (value - 1):+.1f}%"  # +1400 % says less than 15 times


def _title(line: CompareLine) -> str:
    return WORDS.get(line.name) or title(line.name)


def _name(path: str) -> str:
    return Path(path).name or path


def _headline(report: CompareReport) -> dict[str, Any]:
    said = []
    for word, phrase in (
        ("worse", "is worse in"), ("better", "is better in"), ("same", "is the same in"),
        ("not decided", "is not decided in"), ("not comparable", "cannot be compared in"),
    ):  # fmt: skip
        names = [_title(line).lower() for line in report.lines if line.verdict == word]
        said += [f"{phrase} {listing(names)}"] if names else []
    words = {line.verdict for line in report.lines}
    tone = "bad" if "worse" in words else "open" if words & {"not decided", "not comparable"} else "good"
    short = {"bad": "Something is worse", "open": "Nothing is worse, not all is known", "good": "Nothing is worse"}[
        tone
    ]
    return {"sentence": f"{_name(report.b)} {'; '.join(said)}.", "word": short, "tone": tone, "mark": MARKS[tone]}
