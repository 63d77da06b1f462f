"""Two bundles, or two files of `edgedistill bench --out`, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import edgedistill
from edgedistill.errors import SpecError
from edgedistill.gate import Rule, accuracy_line, compared, exact_line, latency_line, memory_line, pair, speed_lines
from edgedistill.pipeline import recheck
from edgedistill.pipeline.gating import named
from edgedistill.pipeline.race import Place, race, stored_measurements
from edgedistill.pipeline.recheck import Bundle
from edgedistill.specs import (
    CompareLine,
    CompareReport,
    Comparison,
    Measurement,
    PairedCounts,
    Progress,
    Rights,
)


@dataclass(frozen=True)
class Subject:
    """One side: a bundle with what its build measured, or measurements alone, by signature."""

    path: Path
    bundle: Bundle | None
    measurements: dict[str, Measurement]


def open_subject(path: Path) -> Subject:
    """A bundle, or a file of measurements.

    Raises:
        SpecError: it is neither.
    """
    if path.is_file():
        return Subject(path, None, stored_measurements(path))
    bundle = recheck.open_bundle(path)
    recheck.check_files(bundle)
    seen = recheck.host_measurement(bundle)
    if seen and seen.artifact_sha256 != bundle.shipped.sha256:
        raise SpecError(f"{path / 'measurements.json'}: is of another file than {bundle.shipped.path}. Build again.")
    return Subject(path, bundle, {seen.signature: seen} if seen else {})


def compare(
    a: Subject, b: Subject, rule: Rule, *, place: Place | None = None, progress: Progress | None = None
) -> CompareReport:
    """Every quantity that both sides have. The files are raced at `place`; without one the stored timings are taken.

    Raises:
        SpecError: nothing can be compared, or measurements alone are to be raced.
        VerificationError, StageError, InfrastructureError: as the race.
    """
    seen: Comparison | None = None
    why = ""
    if place:
        if a.bundle is None or b.bundle is None:
            raise SpecError("--on runs the two models, so both must be bundles, not measurements.")
        seen = race(a.bundle, b.bundle, rule, place=place, progress=progress)
    else:
        seen, why = _stored(a, b, rule)
    lines = [*_of_bundles(a, b, rule.tolerance)]
    if seen:
        lines.append(latency_line(seen))
    elif a.measurements or b.measurements:
        lines.append(
            CompareLine(name="latency_p50_ms", unit="ms", a=_p50(a), b=_p50(b), verdict="not comparable", note=why)
        )
    if seen:
        memory = memory_line(seen.baseline, seen.candidate, rule.tolerance)
        lines += [*speed_lines(seen), *([memory] if memory else [])]
    if not lines:
        raise SpecError(f"{a.path} and {b.path} have nothing in common that could be compared.")
    return CompareReport(
        edgedistill_version=edgedistill.__version__,
        a=named(a.path),
        b=named(b.path),
        tolerance=rule.tolerance,
        lines=tuple(lines),
        comparison=seen,
    )


def _of_bundles(a: Subject, b: Subject, tolerance: float) -> list[CompareLine]:
    if a.bundle is None or b.bundle is None:
        return []
    old, new = a.bundle.manifest, b.bundle.manifest
    same_rows = (
        old.data.get("stage") == new.data.get("stage") and old.artifact_quality.rows == new.artifact_quality.rows
    )
    sizes = a.bundle.shipped.size_mb, b.bundle.shipped.size_mb
    return [
        exact_line("size_mb", "MB", *sizes, tolerance, "bytes of the shipped files"),
        accuracy_line(
            old.artifact_quality, new.artifact_quality, same_rows=same_rows,
            paired=_paired(a.bundle, b.bundle) if same_rows else None,
        ),
    ]  # fmt: skip


def _paired(a: Bundle, b: Bundle) -> PairedCounts | None:
    """Rows by which of both files answers them; None where a bundle is too old to say.

    Raises:
        SpecError: what a bundle says is damaged.
    """
    sides = []
    for bundle in (a, b):
        told, quality = bundle.manifest.right.get(bundle.shipped.format), bundle.manifest.artifact_quality
        if told is None:
            return None
        where = f"{bundle.folder / 'manifest.json'}: right.{bundle.shipped.format}"
        try:
            rows = Rights.decode(told, quality.rows)
        except ValueError as error:
            raise SpecError(f"{where}: {error}. It is not whole: build again.") from None
        if sum(rows) != quality.correct:
            raise SpecError(f"{where}: {sum(rows)} rows, where artifact_quality has {quality.correct}. Build again.")
        sides.append(rows)
    return pair(*sides)


def _stored(a: Subject, b: Subject, rule: Rule) -> tuple[Comparison | None, str]:
    """The comparison of stored timings, or why there is none: a look at two devices is no error."""
    common = [name for name in a.measurements if name in b.measurements]
    if not common:
        return None, "no common signature was measured"
    try:
        return compared(a.measurements[common[-1]], b.measurements[common[-1]], rule, interleaved=False), ""
    except SpecError as error:
        return None, str(error)


def _p50(side: Subject) -> float | None:
    """The median latency of the last signature measured, in ms."""
    return list(side.measurements.values())[-1].latency_p50_ms if side.measurements else None
