"""The bundle a mobile engineer pulls: model, tokenizer, labels, golden samples, manifest, snippet, report.

`manifest.json` lists every file with its hash and holds nothing that differs between two identical builds. What this
host saw (timings, gate, report) lies beside it and is not in that list.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import edgedistill
from edgedistill import catalog
from edgedistill.data import read_splits
from edgedistill.errors import SpecError
from edgedistill.gate import exit_error
from edgedistill.pipeline import companions, preparing
from edgedistill.pipeline.mixed import RESULT
from edgedistill.pipeline.proofs import model_name, read_json
from edgedistill.pipeline.trained import Trained
from edgedistill.pipeline.verdict import SHIPPED, Judged
from edgedistill.report import Curve, ReportData, Split, junit_xml, write_report
from edgedistill.specs import Artifact, FitSpec, GateReport, GateResult, Manifest, Plan, Profile
from edgedistill.store import Finished, check_place, sha256_of, storage_errors, version_of, write_json, write_whole
from edgedistill.teachers import Located

NOT_IN_MANIFEST = {"candidates", "stages", "front", "ties", "search", "efforts"}
BANKING77 = {
    "what": "BANKING77 (a subset), Casanueva et al. 2020, PolyAI",
    "licence": "CC-BY-4.0",
    "use": "training data; texts in golden.json",
}
BUILTIN_LICENCES = {"builtin:banking77": BANKING77, "builtin:banking5": BANKING77}


def check_destination(out: Path) -> None:
    """Refuse, before anything slow, a destination that could not be replaced.

    Raises:
        SpecError: it exists and is not a bundle.
        InfrastructureError: its parent cannot be written.
    """
    if out.exists() and not (out / "manifest.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise SpecError(f"{out}: exists and is not a bundle. Choose another --out, or remove it yourself.")
    check_place(out)


def write(
    out: Path,
    plan: Plan,
    profile: Profile,
    located: Located,
    fit: FitSpec,
    trained: Trained,
    frozen: Finished,
    exported: Mapping[str, Finished],
    verified: Mapping[str, Finished],
    judged: Judged,
    finished: Sequence[Finished],
) -> Path:
    """Write the bundle beside its place and swap it in whole; an older bundle there is replaced."""
    draft = out.with_name(f".{out.name}.draft")
    with storage_errors(out):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        artifacts = _contents(draft, plan, profile, located, trained, frozen, exported, verified)
        manifest = _manifest(draft, plan, profile, located, fit, trained, artifacts, judged, finished)
        write_json(draft / "manifest.json", manifest.model_dump(mode="json"))
        _observed(draft, plan, profile, trained, judged, manifest)
        _swap(draft, out)
    return out


def _contents(
    draft: Path,
    plan: Plan,
    profile: Profile,
    located: Located,
    trained: Trained,
    frozen: Finished,
    exported: Mapping[str, Finished],
    verified: Mapping[str, Finished],
) -> tuple[Artifact, ...]:
    """Everything that is the same for the same input; returns the artifacts, their paths relative to the bundle."""
    labels = read_splits(trained.data.folder).labels
    for name, done in exported.items():
        source, place = done.file(model_name(name)), draft / model_name(name)
        shutil.copytree(source, place) if source.is_dir() else shutil.copy(source, place)
    tokenizer = read_json(frozen.file("tokenizer.json"))
    write_json(draft / "tokenizer.json", tokenizer)
    write_whole(draft / "vocab.txt", preparing.vocabulary(tokenizer).encode())
    write_whole(draft / "labels.txt", "".join(f"{label}\n" for label in labels).encode())
    write_json(draft / "golden.json", _golden([read_json(done.file("golden.json")) for done in verified.values()]))
    write_json(draft / "preprocessing.json", preparing.described(tokenizer, profile))
    (draft / "frozen").mkdir()
    for name in ("student.safetensors", "student.json"):
        shutil.copy(frozen.file(name), draft / "frozen" / name)
    for path in companions.snippets(exported):
        shutil.copy(path, draft / path.name)
    write_whole(draft / companions.NOTICE, companions.notice(_licences(profile, located)).encode())
    return tuple(Artifact(**read_json(done.file("artifact.json"))) for done in exported.values())


def _golden(by_format: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The samples once, with the answers of every format."""
    together = zip(*by_format, strict=True)
    return [same[0] | {"answers": {k: v for item in same for k, v in item["answers"].items()}} for same in together]


def _manifest(
    draft: Path,
    plan: Plan,
    profile: Profile,
    located: Located,
    fit: FitSpec,
    trained: Trained,
    artifacts: tuple[Artifact, ...],
    judged: Judged,
    finished: Sequence[Finished],
) -> Manifest:
    files = {path.relative_to(draft).as_posix(): sha256_of(path) for path in sorted(draft.rglob("*")) if path.is_file()}
    splits = read_splits(trained.data.folder)
    described = profile.model_dump(mode="json")
    # a path says where things lay on one machine; hashes say what they were
    for part in ("train", "held_out"):
        described["data"][part] = _without_folders(described["data"][part])
    for source in described["teacher"]["sources"]:
        source["name"] = _without_folders(source["name"]) if source["kind"] == "folder" else source["name"]
    rows = {part: len(getattr(splits, part)) for part in ("train", "transfer", "validation", "calibration", "held_out")}
    return Manifest(
        edgedistill_version=edgedistill.__version__,
        target=plan.target.model_dump(mode="json"),
        profile=described,
        plan=plan.model_dump(mode="json", exclude={"target", "profile", *NOT_IN_MANIFEST}),
        data={"rows": rows, "labels": list(splits.labels), "notes": dict(splits.notes), "stage": trained.data.key},
        lineage=_lineage(located, fit, trained, finished),
        licences=tuple(_licences(profile, located)),
        libraries={name: version_of(name) for name in ("torch", "transformers", *_tools(artifacts))},
        artifacts=artifacts,
        files=files,
        teacher_quality=judged.qualities["teacher"],
        float_quality=judged.qualities["float"],
        artifact_quality=judged.qualities["file"],
        parity=judged.parity,
        paired=judged.paired,
        right=judged.right,
        sensitivity=read_json(trained.sensitivity.file(RESULT)) if trained.sensitivity else {},
    )


def _lineage(
    located: Located, fit: FitSpec, trained: Trained, finished: Sequence[Finished]
) -> tuple[Mapping[str, Any], ...]:
    """Whom the student learned from, in turn, and by which stages."""
    return (
        {
            "role": "teacher",
            "source": located.source.kind + ":" + str(_without_folders(located.source.name)),
            "weights_sha256": located.sha256,
            "files_sha256": located.files_sha256,
            "fit": fit.model_dump(mode="json"),
            "parameters": read_json(trained.recorded.file("facts.json"))["parameters"],
        },
        *(
            {
                "role": f"assistant {number}",
                "config": dict(one.config),
                "parameters": one.parameters,
                "stages": [f"{item.name}:{item.key}" for item in one.stages],
            }
            for number, one in enumerate(trained.assistants, 1)
        ),
        {
            "role": "student",
            "start": read_json(trained.start.file("facts.json"))["init"],
            "stages": [f"{item.name}:{item.key}" for item in finished],
        },
    )


def _tools(artifacts: Sequence[Artifact]) -> list[str]:
    """Distributions that wrote or ran the files, by the names that formats import them under."""
    needed = {package for item in artifacts for package in catalog.constants("exporters", item.format)["REQUIRES"]}
    return sorted(package.replace("llama_cpp", "llama_cpp_python").replace("_", "-") for package in needed)


def _without_folders(name: str | None) -> str | None:
    return name if name is None or name.startswith("builtin:") else Path(name).name


def _licences(profile: Profile, located: Located) -> list[dict[str, str]]:
    teacher = located.source.licence or "not stated: find out before you ship"
    own = {"what": f"data {_without_folders(profile.data.train)}", "licence": "yours", "use": "training data"}
    return [
        {"what": f"teacher {located.source.kind}:{_without_folders(located.source.name)}", "licence": teacher,
         "use": "weights it was distilled from"},
        BUILTIN_LICENCES.get(profile.data.train, own),
    ]  # fmt: skip


def _observed(draft: Path, plan: Plan, profile: Profile, trained: Trained, judged: Judged, manifest: Manifest) -> None:
    """What this host saw: never hashed into the manifest."""
    error = exit_error(judged.gate, strict=False)
    name = draft.name.removeprefix(".").removesuffix(".draft")
    data = ReportData(
        manifest=manifest,
        plan=plan,
        gate=judged.gate,
        ledger=judged.ledger,
        shipped=SHIPPED,
        measurements=judged.measurements,
        curves=tuple(
            Curve(stage=name, points=tuple(read_json(done.file("facts.json"))["curve"]))
            for name, done in trained.stages.items()
        ),
        splits=_splits(trained),
        exit_code=error.exit_code if error else 0,
    )
    write_json(draft / "measurements.json", {k: m.model_dump(mode="json") for k, m in judged.measurements.items()})
    write_json(draft / "gate.json", _gate_report(judged.gate, name, data.exit_code))
    # In the order that the report shows, so that `edgedistill report` writes the very same page from it.
    write_whole(draft / "report.json", f"{data.model_dump_json(indent=1)}\n".encode())
    write_whole(draft / "gate.junit.xml", junit_xml(judged.gate).encode())
    write_report(draft, data)


def _gate_report(result: GateResult, bundle: str, exit_code: int) -> dict[str, Any]:
    """The verdict in the form in which `edgedistill gate` writes it."""
    return GateReport(
        edgedistill_version=edgedistill.__version__,
        bundle=bundle,
        target=result.target,
        verdict=result.verdict,
        exit_code=exit_code,
        checks=result.checks,
    ).model_dump(mode="json")


def _splits(trained: Trained) -> tuple[Split, ...]:
    splits = read_splits(trained.data.folder)
    parts = ("train", "transfer", "validation", "calibration", "held_out")
    return tuple(
        Split(
            name=part,
            rows=len(getattr(splits, part)),
            dropped_duplicates=splits.notes.get(f"{part}_duplicates_dropped", 0),
        )
        for part in parts
    )


def _swap(draft: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    draft.rename(out)
    shutil.rmtree(old, ignore_errors=True)
