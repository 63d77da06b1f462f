"""A gate's result as a table, for `build` and `gate`."""

from __future__ import annotations

from edgedistill.cli import output
from edgedistill.report.headline import limit_of, value
from edgedistill.specs import GateResult, Verdict


def gate_table(result: GateResult) -> None:
    """Each line with what was seen, what was wanted and the verdict, in the report's words."""
    rows = [
        (
            check.name,
            check.verdict.value,
            value(check.name, check.measured, check.unit),
            limit_of(check),
            check.provenance.value if check.provenance else "–",
        )
        for check in result.checks
    ]
    header = ("gate", "verdict", "seen", "wanted", "figure is")
    output.table(f"{result.target}: {result.verdict.value}", header, rows, right=(2, 3))
    for check in result.checks:  # a line that passed needs no explanation; the report has it
        if check.verdict is not Verdict.PASS:
            output.say(f"{check.name}: {check.note}")
