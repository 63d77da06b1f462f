"""Every error the package raises on purpose, and the exit code each one means.

    EdgedistillError            1  a stage failed
    ├── SpecError               2  a target, profile, option or data file is wrong
    │   └── DataError           2  a row, a label or a split is wrong
    ├── TeacherError            2  the teacher named cannot be used
    ├── MissingDependency       2  a package is not installed
    ├── StageError              1  a stage failed
    │   └── VerificationError   1  the file is not what was trained
    │       └── ForeignFile     2  a model's file is cut off, damaged, or of another program
    ├── GateFailed              3  a budget, quality or parity line failed
    ├── NotDecided              4  a line was not measured, or the measurement cannot decide
    ├── InfrastructureError     5  a device, the disk or a permission was lost
    └── InfeasibleError         6  no candidate can meet the budget

Only `edgedistill.cli` turns them into exit codes. A message says what was seen, where, what is allowed and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgedistillError(Exception):
    """Root of the tree; its message is written for the person at the terminal."""

    exit_code = 1


class SpecError(EdgedistillError):
    """A target, profile, option or file given by the user is wrong."""

    exit_code = 2


class DataError(SpecError):
    """A data file, row, label or split cannot be used."""


class TeacherError(EdgedistillError):
    """The teacher named by the profile cannot be used."""

    exit_code = 2


class MissingDependency(EdgedistillError):
    """A package that this action needs is not installed; the message carries the pip command."""

    exit_code = 2


class StageError(EdgedistillError):
    """A stage of the build failed."""


class VerificationError(StageError):
    """An exported file differs from the student that was trained."""


class ForeignFile(VerificationError):
    """A model's file is cut off, damaged or not of this package: no student can be looked for in it."""

    exit_code = 2


class GateFailed(EdgedistillError):
    """At least one line of the gate failed."""

    exit_code = 3


class NotDecided(EdgedistillError):
    """Nothing failed, but at least one line was not measured or is inconclusive."""

    exit_code = 4


class InfrastructureError(EdgedistillError):
    """A device, the disk or a permission was lost: says nothing about the model."""

    exit_code = 5


class InfeasibleError(EdgedistillError):
    """No candidate meets the budget."""

    exit_code = 6


MOST_NAMES = 40  # that an error lists in full


def did_you_mean(seen: str, allowed: Iterable[str]) -> str:
    """A helpful tail for an error about an unknown name: the nearest allowed name and the list, or of many the nearest.

    Upper and lower case are alike.
    """
    names = sorted(allowed)
    folded = {name.lower(): name for name in reversed(names)}
    close = [folded[one] for one in difflib.get_close_matches(seen.lower(), folded, n=8, cutoff=0.5)]
    hint = f"; did you mean {close[0]!r}?" if close else "."
    if len(names) > MOST_NAMES:
        return f"{hint} Near: {', '.join(close) or 'none'}; there are {len(names)}."
    return f"{hint} Allowed: {', '.join(names) or 'none'}."
