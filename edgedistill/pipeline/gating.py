"""Everything that one run of the gate decides about a bundle, as one report."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import edgedistill
from edgedistill.errors import SpecError
from edgedistill.gate import CostFacts, Rule, budget_lines, exit_error, placement_lines, regression_lines
from edgedistill.pipeline import recheck
from edgedistill.pipeline.benching import TextSize
from edgedistill.pipeline.race import Place, against_stored, jobs_against_stored, race, race_jobs, stored_measurements
from edgedistill.pipeline.recheck import Bundle
from edgedistill.runners import FORMATS
from edgedistill.specs import (
    Artifact,
    Budget,
    Check,
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


def judge_file(
    path: Path,
    *,
    target: Target | None = None,
    limits: Mapping[str, float] | None = None,
    seen: Measurement | None = None,
    comparison: Comparison | None = None,
    baseline: Path | None = None,
    rule: Rule | None = None,
) -> GateReport:
    """A file that belongs to no bundle: what it costs by `seen`, against the budget of `target`, of which `limits`
    replace lines; and how it compares. At least one of both is needed.

    Raises:
        SpecError: the target has no budget, a limit is none, or `seen` is of another file.
    """
    checks = _costs_of_file(path, target, limits or {}, seen) if target and seen else ()
    if comparison:
        checks += regression_lines(comparison, rule or Rule())
    where = target.name if target else comparison.device if comparison else ""
    result = GateResult(target=where, checks=checks)
    error = exit_error(result, strict=True)
    return GateReport(
        edgedistill_version=edgedistill.__version__, bundle=named(path), baseline=named(baseline) if baseline else None,
        target=where, verdict=result.verdict, exit_code=error.exit_code if error else 0, checks=checks,
        comparison=comparison, measured=Side.of(seen) if seen else None,
    )  # fmt: skip


def _costs_of_file(path: Path, target: Target, limits: Mapping[str, float], seen: Measurement) -> tuple[Check, ...]:
    artifact = Artifact(
        path=path.name, format=path.suffix.lstrip("."), sha256=sha256_of(path), size_mb=path.stat().st_size / 1e6
    )
    if seen.artifact_sha256 != artifact.sha256:
        raise SpecError(f"the measurement is of another file than {path}: sha256 differs.")
    budget = Budget.decode({**target.budget.model_dump(), **limits}, "--budget")
    checks = budget_lines(target, budget, CostFacts(artifact=artifact, host=seen))
    if not checks:
        raise SpecError(f"{target.name} limits nothing. Give limits: --budget decode_tokens_per_s=20,size_mb=500.")
    return checks


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


def compare_files(
    baseline: Path,
    candidate: Path,
    rule: Rule,
    *,
    place: Place,
    size: TextSize | None = None,
    against_itself: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Race two decoders that belong to no bundle, or take stored launches of the baseline.

    `size` is the text; None for the stored one, else the usual one.

    Raises:
        SpecError: the baseline is neither, or cannot be compared with the candidate.
        MissingDependency, StageError, InfrastructureError: as the runner says.
    """
    if baseline.is_dir():
        raise SpecError(f"{baseline}: is a folder. Give a model's file, or one of `bench --out`.")
    if baseline.suffix in FORMATS:
        old, new = ((size or TextSize()).job(path, place.threads or 1) for path in (baseline, candidate))
        return race_jobs(old, new, rule, place=place, against_itself=against_itself, progress=progress)
    if against_itself:
        raise SpecError("--aa launches the baseline twice, so --baseline must be a model's file, not stored launches.")
    size = size or _stored_size(baseline)
    jobs = {size.signature: size.job(candidate, place.threads or 1)}
    return jobs_against_stored(baseline, jobs, rule, place=place, progress=progress)


def _stored_size(path: Path) -> TextSize:
    """The last text that was timed there; the usual one where none was, which is then found not to be there."""
    for name in reversed(list(stored_measurements(path))):
        if told := re.fullmatch(r"prompt_(\d{1,7})_answer_(\d{1,7})", name):
            return TextSize(int(told[1]), int(told[2]))
    return TextSize()
