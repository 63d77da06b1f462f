"""What GitHub shows of a gate: annotations on the run. The step summary is the Markdown page itself."""

from __future__ import annotations

from collections.abc import Iterable

from edgedistill.report.headline import limit_of, title, value
from edgedistill.report.text import clean
from edgedistill.specs import Check, Verdict

LEVELS = {Verdict.FAIL: "error", Verdict.INCONCLUSIVE: "warning", Verdict.UNMEASURED: "warning"}
MOST = 10  # GitHub shows ten errors and ten warnings of a step


def workflow_commands(checks: Iterable[Check]) -> list[str]:
    """Workflow commands: an error for each line that failed, a warning for each that is not decided."""
    told = []
    for level in ("error", "warning"):
        mine = [check for check in checks if LEVELS.get(check.verdict) == level]
        told += [_command(level, check) for check in mine[:MOST]]
    return told


def _command(level: str, check: Check) -> str:
    seen = "not measured" if check.measured is None else value(check.name, check.measured, check.unit)
    text = f"{seen}, wanted {limit_of(check)}{f' ({check.note})' if check.note else ''}"
    name = f"{check.verdict.value}: {title(check.name)}"
    return f"::{level} title={_property(name)}::{_data(text)}"


def _data(text: str) -> str:
    """Text after the `::`, escaped as @actions/core does: a new line would start another command."""
    return clean(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
