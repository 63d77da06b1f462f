"""A gate's result as a table, for `build` and `gate`."""

from __future__ import annotations

from edgedistill.cli import output
from edgedistill.report.text import limited, percent
from edgedistill.report.view import SHARES
from edgedistill.specs import Check, GateResult


def gate_table(result: GateResult) -> None:
    """Each line with what was seen, what was wanted and the verdict."""
    rows = [
        (check.name, check.verdict.value, _seen(check), f"{check.relation} {_limit(check)}", _source(check), check.note)
        for check in result.checks
    ]
    header = ("gate", "verdict", "seen", "wanted", "figure is", "note")
    output.table(f"{result.target}: {result.verdict.value}", header, rows, right=(2, 3))


def _seen(check: Check) -> str:
    if check.measured is None:
        return "–"
    return percent(check.measured, 2) if check.name in SHARES else f"{check.measured:.4g} {check.unit}".strip()


def _limit(check: Check) -> str:
    return percent(check.limit) if check.name in SHARES else limited(check.limit, check.unit)


def _source(check: Check) -> str:
    return check.provenance.value if check.provenance else "–"
