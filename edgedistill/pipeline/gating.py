"""Everything that one run of the gate decides about a bundle, as one report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import edgedistill
from edgedistill.errors import SpecError
from edgedistill.gate import CostFacts, Rule, budget_lines, exit_error, placement_lines, regression_lines
from edgedistill.pipeline import recheck
from edgedistill.pipeline.race import Place, against_stored, race, stored_measurements
from edgedistill.pipeline.recheck import Bundle
from edgedistill.specs import (
    Artifact,
    Budget,
    Comparison,
    GateReport,
    GateResult,
    Measurement,
    Progress,
    Side,
    Target,
)
from edgedistill.store import sha256_of


def judge(
    bundle: Bundle,
    limits: Mapping[str, float],
    *,
    comparison: Comparison | None = None,
    baseline: Path | None = None,
    rule: Rule | None = None,
    measured: Measurement | None = None,
    unit: str | None = None,
    off_unit_max: float = 0.0,
) -> GateReport:
    """The bundle's own lines, then those of a comparison and those of a placement, where they are asked for.

    `measured` replaces the timings that came with the bundle. `unit` is the compute unit that has to do all but
    `off_unit_max` of the work.

    Raises:
        VerificationError: a file is not what the manifest says, so the facts are another file's.
        SpecError: a fact cannot be read, or `measured` is of another file.
    """
    if measured and measured.artifact_sha256 != bundle.shipped.sha256:
        raise SpecError(
            f"the measurement is of another file than {bundle.folder / bundle.shipped.path}: sha256 differs."
        )
    checks = list(recheck.gate_again(bundle, limits, measured=measured).checks)
    if comparison:
        checks += regression_lines(comparison, rule or Rule())
    if unit:
        checks += placement_lines(measured or recheck.host_measurement(bundle), unit, off_unit_max)
    result = GateResult(target=bundle.target.name, checks=tuple(checks))
    error = exit_error(result, strict=True)
    return GateReport(
        edgedistill_version=edgedistill.__version__,
        bundle=named(bundle.folder),
        baseline=named(baseline) if baseline else None,
        target=result.target,
        verdict=result.verdict,
        exit_code=error.exit_code if error else 0,
        checks=result.checks,
        comparison=comparison,
    )


def judge_file(path: Path, target: Target, limits: Mapping[str, float], seen: Measurement) -> GateReport:
    """What a file that belongs to no bundle costs, against a target's budget; `limits` replace lines of it.

    Raises:
        SpecError: the target has no budget, a limit is none, or `seen` is of another file.
    """
    artifact = Artifact(
        path=path.name, format=path.suffix.lstrip("."), sha256=sha256_of(path), size_mb=path.stat().st_size / 1e6
    )
    if seen.artifact_sha256 != artifact.sha256:
        raise SpecError(f"the measurement is of another file than {path}: sha256 differs.")
    budget = Budget.decode({**target.budget.model_dump(), **limits}, "--budget")
    checks = budget_lines(target, budget, CostFacts(artifact=artifact, host=seen))
    if not checks:
        raise SpecError(f"{target.name} limits nothing. Give limits: --budget decode_tokens_per_s=20,size_mb=500.")
    result = GateResult(target=target.name, checks=checks)
    error = exit_error(result, strict=True)
    return GateReport(
        edgedistill_version=edgedistill.__version__, bundle=named(path), target=target.name,
        verdict=result.verdict, exit_code=error.exit_code if error else 0, checks=checks, measured=Side.of(seen),
    )  # fmt: skip


def named(path: Path) -> str:
    """The path as text that every encoding can hold: a file's name on Linux is bytes."""
    return os.fsencode(path).decode("utf-8", "replace")


def measured_file(path: Path, bundle: Bundle) -> Measurement:
    """The measurement of the bundle's longest texts in a file of `edgedistill bench --out`.

    Raises:
        SpecError: the file is damaged, or holds no such measurement.
    """
    found = stored_measurements(path)
    for length in reversed(bundle.profile.student.buckets):
        if f"length_{length}" in found:
            return found[f"length_{length}"]
    raise SpecError(f"{path}: holds {', '.join(found)}; none is a signature of {bundle.folder}.")


def compare_with(
    baseline: Path,
    candidate: Bundle,
    rule: Rule,
    *,
    place: Place,
    against_itself: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Race a baseline bundle, or take a stored measurement of one.

    Raises:
        SpecError: the baseline is neither, or cannot be compared with the candidate.
    """
    if not baseline.is_file():
        return race(
            recheck.open_bundle(baseline), candidate, rule,
            place=place, against_itself=against_itself, progress=progress,
        )  # fmt: skip
    if against_itself:
        raise SpecError("--aa launches the baseline twice, so --baseline must be a bundle, not stored launches.")
    return against_stored(baseline, candidate, rule, place=place, progress=progress)
