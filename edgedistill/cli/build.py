"""`edgedistill build`: everything from the teacher to the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgedistill.cli import options, output

if TYPE_CHECKING:
    from edgedistill.cli.progress import Watch
    from edgedistill.cli.select import Selection
    from edgedistill.pipeline import BuildResult
    from edgedistill.specs import Manifest

OUT = Path("edgedistill_out")


def build(
    target: options.TargetName,
    profile: options.ProfileName = "default",
    data: options.DataFile = None,
    held_out: options.HeldOutFile = None,
    teacher: options.TeacherName = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="The bundle. Default: edgedistill_out/TARGET-PROFILE."),
    ] = None,
    store: options.StoreFolder = None,
    seed: options.Seed = None,
    baselines: options.Baselines = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 when a budget line is not decided.")] = False,
    budget: options.Limits = None,
    formats: options.Formats = None,
    search: options.Search = False,
    optimize_for: options.OptimizeFor = None,
    confidence: options.Confidence = None,
    assistants: options.Assistants = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Plan, distil, quantize, export, verify, measure, gate; leave a bundle.

    Run it again after an interruption: finished stages are kept.
    """
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill.cli import plan, select

    chosen = select.select(
        target,
        profile,
        data=data,
        held_out=held_out,
        teacher=teacher,
        seed=seed,
        limits=budget or (),
        formats=formats or (),
        search=search,
        optimize_for=optimize_for,
        confidence=confidence,
        assistants=assistants,
    )
    root = select.store_root(store)
    if dry_run:
        plan.show(chosen, root, baselines=baselines, explain=False, why=False, states=True)
        return
    result, watch = _run(chosen, root, out, baselines=baselines)
    _tell(result, watch, as_json=as_json, strict=strict)


def _run(chosen: Selection, root: Path, out: Path | None, *, baselines: bool) -> tuple[BuildResult, Watch]:
    """Build it, with the running stage drawn."""
    from edgedistill import pipeline
    from edgedistill.cli import select
    from edgedistill.cli.progress import Watch
    from edgedistill.store import Store

    devices = "+".join(one.name for one in (chosen.target, *chosen.fleet))
    with select.naming_the_option(chosen), Watch() as watch:
        result = pipeline.build(
            chosen.target,
            chosen.profile,
            store=Store(root),
            out=out or OUT / f"{devices}-{chosen.profile.name}",
            base=chosen.base,
            fleet=chosen.fleet,
            baselines=baselines,
            progress=watch,
        )
    return result, watch


def _tell(result: BuildResult, watch: Watch, *, as_json: bool, strict: bool) -> None:
    """What was built, and the gate's verdict as an exit code."""
    from edgedistill import gate

    error = gate.exit_error(result.gate, strict=strict)
    code = error.exit_code if error else 0
    if as_json:
        output.json_document(_document(result, watch, code))
    else:
        _summary(result, watch)
    if error:
        raise error


def _document(result: BuildResult, watch: Watch, code: int) -> dict[str, Any]:
    manifest = _manifest(result)
    return {
        "bundle": str(result.folder),
        "exit_code": code,
        "gate": result.gate.model_dump(mode="json") | {"verdict": result.gate.verdict.value},
        "not_measured": _open_lines(result),
        "accuracy": {
            "teacher": manifest.teacher_quality.model_dump(mode="json"),
            "file": manifest.artifact_quality.model_dump(mode="json"),
        },
        "artifacts": [item.model_dump(mode="json") for item in manifest.artifacts],
        "stages": [
            {"name": line.stage, "seconds": round(line.seconds, 3), "cached": line.cached, "note": line.note}
            for line in watch.lines
        ],
        "next": next_command(result),
    }


def _summary(result: BuildResult, watch: Watch) -> None:
    from edgedistill.cli.verdicts import gate_table

    manifest = _manifest(result)
    gate_table(result.gate)
    shipped, file, teacher = manifest.artifacts[0], manifest.artifact_quality, manifest.teacher_quality
    spent = sum(line.seconds for line in watch.lines)
    output.say(
        f"held-out accuracy {file.accuracy:.2%} (teacher {teacher.accuracy:.2%}, {file.rows} rows), "
        f"{shipped.size_mb:.3f} MB, built in {spent:.1f} s"
    )
    missing = _open_lines(result)
    if missing:
        output.say(f"not decided on {result.gate.target}: {', '.join(missing)}", "yellow")
    output.say(f"bundle: {result.folder}", "bold")
    output.say(f"report: {result.folder / 'report.html'}")
    output.say(f"next:   {next_command(result)}")


def _open_lines(result: BuildResult) -> list[str]:
    """The lines that nothing has decided: not measured, or measured without an answer."""
    return [check.name for check in result.gate.checks if check.verdict.value in ("UNMEASURED", "INCONCLUSIVE")]


def next_command(result: BuildResult) -> str:
    """What a person does after this build."""
    import shlex

    folder = shlex.quote(str(result.folder))
    verdict = result.gate.verdict.value
    if verdict == "FAIL":
        return f"edgedistill plan --target {shlex.quote(result.gate.target)} --explain"
    return f"edgedistill bench {folder} --on host" if verdict == "INCONCLUSIVE" else f"edgedistill verify {folder}"


def _manifest(result: BuildResult) -> Manifest:
    from edgedistill.pipeline.recheck import open_bundle

    return open_bundle(result.folder).manifest
