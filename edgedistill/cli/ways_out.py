"""How a verdict leaves the command: a table or JSON, files in a folder, GitHub's summary and annotations."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.cli import output

if TYPE_CHECKING:
    from edgedistill.specs import CompareReport, GateReport

SUMMARY = "GITHUB_STEP_SUMMARY"


def tell_gate(report: GateReport, *, out: Path | None, github: bool) -> None:
    """Say what the gate decided everywhere it is asked for.

    Raises:
        InfrastructureError: a file cannot be written.
        SpecError: GitHub is asked for outside of it.
    """
    from edgedistill.cli.verdicts import gate_table

    written = []
    if out:
        from edgedistill.report import write_gate

        written = write_gate(out, report)
    if github:
        _tell_github(report)
    if output.wants_json():
        output.json_document(report.model_dump(mode="json"))
    gate_table(report.result)
    if written:
        output.say(f"wrote {', '.join(path.name for path in written)} in {out}")


def tell_comparison(report: CompareReport, *, out: Path | None) -> None:
    """Say how two builds compare everywhere it is asked for.

    Raises:
        InfrastructureError: a file cannot be written.
    """
    from edgedistill.report.compare_page import cells, write_comparison

    written = write_comparison(out, report) if out else []
    if output.wants_json():
        output.json_document(report.model_dump(mode="json"))
    rows = [(line.name, *(told for name, told in cells(line) if name != "Note")) for line in report.lines]
    output.table(f"A: {report.a}\nB: {report.b}", ("quantity", "B is", "A", "B", "change", "95% interval"), rows,
                 right=range(2, 6))  # fmt: skip
    for line in report.lines:
        output.say(f"{line.name}: {line.note}")
    if written:
        output.say(f"wrote {', '.join(path.name for path in written)} in {out}")


def _tell_github(report: GateReport) -> None:
    """Append to the step's summary and write annotations, which GitHub reads from both streams."""
    from edgedistill.errors import SpecError
    from edgedistill.report import gate_page, workflow_commands
    from edgedistill.store import writing

    place = os.environ.get(SUMMARY)
    if not place:
        raise SpecError(f"--github: {SUMMARY} is not set, so this is no step of a GitHub workflow.")
    path = Path(place)
    with writing(path), path.open("a", encoding="utf-8") as summary:
        summary.write(gate_page(report).markdown())
    stream = sys.stderr if output.wants_json() else sys.stdout
    for line in workflow_commands(report.checks):
        print(line, file=stream, flush=True)
