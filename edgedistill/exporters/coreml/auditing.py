"""What a package says about where it runs, without running it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from edgedistill.coreml import lint, load
from edgedistill.errors import ForeignFile
from edgedistill.exporters.coreml.card import card_of
from edgedistill.specs import Audit

# the first systems that load a specification version
_SYSTEMS = {8: "iOS 17, macOS 14", 9: "iOS 18, macOS 15"}


def audit(path: Path) -> Audit:
    """The oldest system that loads the package, its operations by kind, and the risks they carry.

    Raises:
        ForeignFile: if the package is foreign or damaged.
    """
    program = load(path)
    card_of(program)
    if program.specification not in _SYSTEMS:
        raise ForeignFile(f"{path}: has specification version {program.specification}; ours are 8 and 9.")
    counts = Counter(operation.kind for operation in program.main.operations if operation.kind != "const")
    return Audit(
        runtime_min=_SYSTEMS[program.specification],
        operators=dict(sorted(counts.items())),
        risks=tuple(f"{risk.message} ({risk.where})" for risk in lint(program)),
    )
