"""A finished bundle, looked at again: its files, its codes, its answers, its verdict, its report.

A bundle is untrusted input. It may come from anywhere, so a path in its manifest must stay inside it, nothing in it may
be a link, and a figure that can be had from a file's bytes is taken from there and not from what a JSON file claims.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from edgedistill import catalog
from edgedistill.errors import ForeignFile, SpecError, VerificationError
from edgedistill.gate import GateFacts
from edgedistill.pipeline import golden
from edgedistill.pipeline.fleet import stored_fleet_checks
from edgedistill.pipeline.golden import GoldenSample
from edgedistill.pipeline.verdict import SHIPPED, judge_format
from edgedistill.report import ReportData, write_report
from edgedistill.specs import (
    Artifact,
    Budget,
    Check,
    GateResult,
    Manifest,
    Measurement,
    Parity,
    Prediction,
    Profile,
    Quality,
    Target,
)
from edgedistill.specs.results import SCHEMA_VERSION
from edgedistill.store import bytes_of, digest_of, sha256_of

JSON_LIMIT = 200_000_000  # bytes; a larger file is not one that a build wrote
# What every check builds on: a manifest that leaves one of these out vouches for nothing.
NEEDED = ("frozen/student.json", "frozen/student.safetensors", "golden.json", "labels.txt", "tokenizer.json")
REPORTS = ("report.html", "report.md")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, and the manifest with the two specs that it describes."""

    folder: Path
    manifest: Manifest
    target: Target
    profile: Profile

    @property
    def shipped(self) -> Artifact:
        """The file that the gate judges."""
        return self.manifest.artifacts[0]


def is_file(path: Path) -> bool:
    """Whether this is one model's file and no bundle; a .mlpackage is a folder."""
    return path.is_file() or (path.is_dir() and path.suffix == ".mlpackage")


def open_bundle(folder: Path) -> Bundle:
    """Read and check the manifest; no other file is opened.

    Raises:
        SpecError: this is not a bundle, or its manifest is missing, damaged or names a file outside the bundle.
    """
    told = "Give the folder that `edgedistill build` wrote."
    if not folder.is_dir():
        raise SpecError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}. {told}")
    if not os.path.lexists(folder / "manifest.json"):
        raise SpecError(f"{folder}: has no manifest.json, so it is no bundle. {told}")
    where = f"{folder / 'manifest.json'}"
    value = read_object(folder, "manifest.json")
    if value.get("schema_version") != SCHEMA_VERSION:
        raise SpecError(
            f"{where}: schema_version = {value.get('schema_version')!r}, this edgedistill reads {SCHEMA_VERSION}."
        )
    manifest = Manifest.decode(value, where)
    listed = {*manifest.files, *(name.partition("/")[0] for name in manifest.files)}  # a .mlpackage is a folder
    absent = sorted({*NEEDED, *(item.path for item in manifest.artifacts)} - listed)
    if absent or not manifest.artifacts:
        raise SpecError(f"{where}: lists no {absent[0] if absent else 'artifact'}. It is not whole: build again.")
    for name in manifest.files:
        inside(folder, name)
    target = Target.decode(manifest.target, f"{where}: target")
    return Bundle(folder, manifest, target, Profile.decode(manifest.profile, f"{where}: profile"))


def inside(folder: Path, name: str) -> Path:
    """The path of a regular file of the bundle.

    Raises:
        SpecError: the name leads out of the bundle, or the file is missing, a link or not a file.
    """
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or ":" in pure.parts[0]:
        raise SpecError(f"{folder}: the manifest names {name!r}, which is not a path inside the bundle.")
    path = folder
    for part in pure.parts:
        path = path / part
        if path.is_symlink():
            raise SpecError(f"{path}: is a symbolic link. A bundle holds its own files; copy the file in its place.")
    if not path.is_file():
        raise SpecError(f"{path}: no such file in the bundle.")
    return path


def read_json(folder: Path, name: str) -> Any:
    """The value of one of the bundle's JSON files.

    Raises:
        SpecError: it is missing, too large, not UTF-8 or not JSON.
    """
    path = inside(folder, name)
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise SpecError(f"{path}: larger than {JSON_LIMIT / 1e6:.0f} MB, so no build wrote it.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not UTF-8 JSON: {str(error)[:200]}.") from None


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """As `read_json`, for a file that holds a JSON object.

    Raises:
        SpecError: as `read_json`, or the value is no object.
    """
    value = read_json(folder, name)
    if not isinstance(value, dict):
        raise SpecError(f"{folder / name}: not a JSON object.")
    return value


def check_files(bundle: Bundle) -> int:
    """Compare every listed file with its hash, and every artifact with its size; returns the number of files.

    Raises:
        VerificationError: naming the first file that is not what the manifest says.
        ForeignFile: that file belongs to a model, and no model can be read from it.
    """
    for name, expected in sorted(bundle.manifest.files.items()):
        path = inside(bundle.folder, name)
        found = sha256_of(path)
        if found != expected:
            _refuse_damage(bundle, name)
            raise VerificationError(
                f"{path}: changed since it was built: sha256 is {found[:16]}…, the manifest says {expected[:16]}…."
            )
    for artifact in bundle.manifest.artifacts:
        path = model_path(bundle, artifact)
        if digest_of(path) != artifact.sha256 or bytes_of(path) / 1e6 != artifact.size_mb:
            raise VerificationError(f"{bundle.folder}: the manifest contradicts itself about {artifact.path}.")
    return len(bundle.manifest.files)


def _refuse_damage(bundle: Bundle, name: str) -> None:
    """Of a model that was changed, whether it is one still: a file that was cut off is not one with other numbers."""
    for artifact in bundle.manifest.artifacts:
        if name == artifact.path or name.startswith(f"{artifact.path}/"):
            refuse_foreign(artifact.format, bundle.folder / artifact.path)


def refuse_foreign(format_name: str, path: Path) -> None:
    """Look at a file's structure; nothing is said where it is sound, or where its format's packages are not installed.

    Raises:
        ForeignFile: it is cut off, damaged, or no file of the format.
    """
    about = catalog.constants("exporters", format_name)
    if any(find_spec(package) is None for package in about["REQUIRES"]):
        return
    try:
        catalog.load_plugin("exporters", format_name).audit(path)
    except ForeignFile:
        raise
    except VerificationError:
        return  # a model, but not as a build makes it: the caller says what is wrong


def model_path(bundle: Bundle, artifact: Artifact) -> Path:
    """The file of an artifact, or the folder where its format is one: every file in it listed, and no other there.

    Raises:
        SpecError: it is missing, a link, or holds files that the manifest does not list.
    """
    inner = [name for name in bundle.manifest.files if name.startswith(f"{artifact.path}/")]
    if not inner:
        return inside(bundle.folder, artifact.path)
    for name in inner:
        inside(bundle.folder, name)
    path = bundle.folder / artifact.path
    found = {item.relative_to(bundle.folder).as_posix() for item in path.rglob("*") if not item.is_dir()}
    if found - set(inner):
        raise SpecError(f"{path}: holds {min(found - set(inner))}, which the manifest does not list. Build again.")
    return path


def gate_again(bundle: Bundle, limits: Mapping[str, float], *, measured: Measurement | None = None) -> GateResult:
    """Judge the bundle on its stored facts; `limits` replace lines of its budget, `measured` its stored timings.

    Raises:
        VerificationError: a file is not what the manifest says, so the facts are another file's.
        SpecError: a stored fact cannot be read.
    """
    check_files(bundle)
    manifest, where = bundle.manifest, str(bundle.folder / "manifest.json")
    stored = manifest.plan.get("budget")
    budget = Budget.decode({**(stored if isinstance(stored, dict) else {}), **limits}, f"{where}: plan.budget")
    chosen = manifest.plan.get("chosen")
    told = chosen.get("predictions", ()) if isinstance(chosen, dict) else ()
    predictions = tuple(Prediction.decode(item, f"{where}: plan.chosen.predictions") for item in told)
    checks: list[Check] = []
    for artifact in manifest.artifacts:
        if artifact.format not in manifest.parity:
            raise SpecError(f"{where}: parity of format {artifact.format!r} is missing.")
        first, parity = artifact is bundle.shipped, manifest.parity[artifact.format]
        quality = manifest.artifact_quality if first else _quality(parity, where)
        facts = GateFacts(
            artifact=artifact,
            teacher=manifest.teacher_quality,
            file=quality,
            parity=parity,
            paired=manifest.paired.get(artifact.format),
            host=(measured or host_measurement(bundle)) if first else None,
            predictions=predictions if first else (),
        )
        checks += judge_format(bundle.target, budget, bundle.profile.quality, facts, first=first)
        if first:
            checks += stored_fleet_checks(manifest, bundle.profile.budget, facts, where)
    return GateResult(target=bundle.target.name, checks=tuple(checks))


def _quality(parity: Parity, where: str) -> Quality:
    """A further format's accuracy, from what its verification counted."""
    if not parity.rows or not 0 <= parity.accuracy_file <= 1:
        raise SpecError(f"{where}: parity: no accuracy on {parity.rows} rows.")
    return Quality.wilson(round(parity.accuracy_file * parity.rows), parity.rows)


def render(bundle: Bundle) -> tuple[Path, Path]:
    """Write report.html and report.md anew from report.json.

    Raises:
        SpecError: report.json is missing, damaged or another build's, or a report to be replaced is a link.
    """
    where = str(bundle.folder / "report.json")
    data = ReportData.decode(read_object(bundle.folder, "report.json"), where)
    if data.manifest != bundle.manifest:
        raise SpecError(f"{where}: belongs to another build than manifest.json. Build again.")
    for name in REPORTS:  # writing through a link would change a file elsewhere
        if (bundle.folder / name).is_symlink():
            raise SpecError(f"{bundle.folder / name}: is a symbolic link and is not written to. Remove it.")
    return write_report(bundle.folder, data)


def golden_samples(bundle: Bundle) -> tuple[GoldenSample, ...]:
    """The bundle's replayable samples.

    Raises:
        SpecError: golden.json is damaged or empty, or lacks the answers of a format.
        VerificationError: it has more or fewer samples than the build wrote.
    """
    formats, path = {artifact.format for artifact in bundle.manifest.artifacts}, bundle.folder / "golden.json"
    samples = golden.decode(read_json(bundle.folder, "golden.json"), formats, str(path))
    rows = bundle.manifest.data.get("rows")
    held_out = rows.get("held_out") if isinstance(rows, dict) else None
    if not isinstance(held_out, int):
        raise SpecError(f"{bundle.folder / 'manifest.json'}: data.rows.held_out is missing. Build again.")
    wanted = min(bundle.profile.export.golden_samples, held_out)
    if len(samples) != wanted:
        raise VerificationError(f"{path}: has {len(samples)} samples, a build of this profile {wanted}. Build again.")
    return samples


def host_measurement(bundle: Bundle) -> Measurement | None:
    """This file's timings on the machine that built it; None when the bundle came without them."""
    if not (bundle.folder / "measurements.json").exists():
        return None
    value = read_object(bundle.folder, "measurements.json").get(SHIPPED)
    return Measurement.decode(value, f"{bundle.folder}/measurements.json") if isinstance(value, dict) else None
