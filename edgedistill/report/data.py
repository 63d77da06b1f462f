"""What a report is made of."""

from __future__ import annotations

from collections.abc import Mapping

from edgedistill.specs import GateResult, LedgerRow, Manifest, Measurement, Plan
from edgedistill.specs.base import Spec


class Curve(Spec):
    """The training loss of one stage, as (step, loss) points in order."""

    stage: str
    points: tuple[tuple[int, float], ...]


class Split(Spec):
    """One part of the data, in rows, and the duplicates that were dropped from it."""

    name: str
    rows: int
    dropped_duplicates: int = 0
    note: str = ""


class ReportData(Spec):
    """Everything the report shows. Texts and labels in it are not trusted.

    `ledger` starts with the teacher; `shipped` names the row that is the exported file; `measurements` holds this
    machine's timings by ledger row; `exit_code` is what the command ended with.
    """

    manifest: Manifest
    plan: Plan
    gate: GateResult
    ledger: tuple[LedgerRow, ...]
    shipped: str
    measurements: Mapping[str, Measurement] = {}
    curves: tuple[Curve, ...] = ()
    splits: tuple[Split, ...] = ()
    exit_code: int = 0
