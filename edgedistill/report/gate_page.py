"""A gate's report and a comparison as files: JSON, JUnit XML, Markdown for a pull request, HTML, PNG and PDF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from edgedistill.errors import InfrastructureError
from edgedistill.report.headline import limit_of, missed, open_lines, title, value
from edgedistill.report.junit import junit_xml
from edgedistill.report.panel import Panel, as_svg, write_sheet
from edgedistill.report.race_plots import panels
from edgedistill.report.text import NOT_KNOWN, listing
from edgedistill.report.view import TONES
from edgedistill.report.write import html_pages, markdown_pages
from edgedistill.specs import Check, Comparison, GateReport, Verdict

MARKS = {"good": "✅", "bad": "❌", "open": "⚠️"}


@dataclass(frozen=True)
class Page:
    """What both templates place: texts only, and the plots of the HTML page."""

    texts: Mapping[str, Any]
    panels: Sequence[Panel]

    def markdown(self) -> str:
        """For a pull request or a step summary: no pictures, as those places load none."""
        return markdown_pages().get_template("gate.md.j2").render(**self.texts)

    def html(self) -> str:
        """One file that loads nothing from outside."""
        svg = as_svg(self.panels)
        plots = [{"caption": one.caption, "told": one.told, "svg": Markup(svg[one.name])} for one in self.panels]
        return html_pages().get_template("gate.html.j2").render(**self.texts, plots=plots)

    def write(self, folder: Path, name: str, others: Mapping[str, str]) -> list[Path]:
        """Write `NAME.md`, `NAME.html`, comparison.png, comparison.pdf and `others`; returns all paths.

        Raises:
            InfrastructureError: the folder cannot be written to.
        """
        texts = {f"{name}.md": self.markdown(), f"{name}.html": self.html(), **others}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in texts.items():
                (folder / file).write_text(text, encoding="utf-8", newline="\n")
            sheet = self.texts["title"], self.texts["headline"]["sentence"]
            drawn = write_sheet(folder, *sheet, self.panels) if self.panels else ()
        except OSError as error:
            raise InfrastructureError(f"{folder}: cannot write the report ({error.strerror}).") from None
        return [*(folder / file for file in texts), *drawn]


def gate_page(report: GateReport) -> Page:
    """The page of a gate."""
    texts = {
        "eyebrow": "edgedistill gate",
        "title": f"Gate of {Path(report.bundle).name or report.bundle} for {_place(report)}",
        "headline": _headline(report),
        "table": {
            "title": "Verdict, line by line",
            "columns": ("Line", "Verdict", "Seen", "Limit", "Source", "Note"),
            "figures": ("Seen", "Limit"),
            "rows": [_row(check) for check in report.checks],
        },
        "context": context(report.comparison) if report.comparison else "",
        "facts": _facts(report),
        "version": report.edgedistill_version,
    }
    return Page(texts, panels(report.checks, report.comparison, report.measured))


def write_gate(folder: Path, report: GateReport) -> list[Path]:
    """Write gate.json, gate.junit.xml, gate.md, gate.html and, where there are plots, comparison.png and .pdf.

    Raises:
        InfrastructureError: the folder cannot be written to.
    """
    document = f"{report.model_dump_json(indent=1)}\n"
    return gate_page(report).write(folder, "gate", {"gate.json": document, "gate.junit.xml": junit_xml(report.result)})


def context(seen: Comparison) -> str:
    """Where and how two files were timed, in one line."""
    how = "launches in turns" if seen.interleaved else "launches of two sessions"
    return (
        f"{seen.device}, {seen.os_build}, {seen.runtime}, {seen.threads} thread(s), signature {seen.signature}; "
        f"{seen.latency.pairs} {how}."
    )


def _place(report: GateReport) -> str:
    return "this machine" if report.target == "host" else report.target


def _headline(report: GateReport) -> dict[str, str]:
    failed = [check for check in report.checks if check.verdict is Verdict.FAIL]
    unknown = [check for check in report.checks if check.verdict in (Verdict.INCONCLUSIVE, Verdict.UNMEASURED)]
    place = _place(report)
    tail = f"; {open_lines(unknown, place)}" if unknown else ""
    if failed:
        told, word, tone = f"This build does not pass: {listing([missed(c) for c in failed])}{tail}.", "FAIL", "bad"
    elif unknown:
        passed = len(report.checks) - len(unknown)
        told = f"{passed} of {len(report.checks)} lines pass and none fails, but {open_lines(unknown, place)}."
        word, tone = "Not decided", "open"
    else:
        told, word, tone = f"This build passes: all {len(report.checks)} lines.", "PASS", "good"
    return {"sentence": told, "word": word, "tone": tone, "mark": MARKS[tone]}


def _row(check: Check) -> dict[str, Any]:
    seen = "not measured" if check.measured is None else value(check.name, check.measured, check.unit)
    source = check.provenance.value if check.provenance else NOT_KNOWN
    return {
        "title": title(check.name),
        "tone": TONES[check.verdict],
        "cells": [
            ("Verdict", check.verdict.value), ("Seen", seen), ("Limit", limit_of(check)), ("Source", source),
            ("Note", check.note),
        ],
    }  # fmt: skip


def _facts(report: GateReport) -> list[tuple[str, str]]:
    facts = [("bundle", report.bundle), ("baseline", report.baseline or ""), ("target", report.target)]
    if report.comparison:
        facts += [
            ("sha256 of the candidate", report.comparison.candidate.artifact_sha256),
            ("sha256 of the baseline", report.comparison.baseline.artifact_sha256),
        ]
    facts += [("exit code", str(report.exit_code)), ("edgedistill", report.edgedistill_version)]
    return [(key, told) for key, told in facts if told]
