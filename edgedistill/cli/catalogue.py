"""`edgedistill targets`, `profiles` and `schema`: what there is to choose from, and how to write one's own."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from edgedistill.cli import options, output


def targets(as_json: options.AsJson = False) -> None:
    """List the devices that --target knows."""
    output.choose(as_json=as_json)
    from edgedistill import catalog

    found = [catalog.load_target(name) for name in catalog.target_names()]
    if as_json:
        output.json_document([one.model_dump(mode="json") for one in found])
        return
    lines = ("size_mb", "latency_p95_ms", "peak_memory_mb", "energy_mj")
    rows = [
        (one.name, one.title, one.soc, f"{one.ram_mb:,.0f}", ", ".join(one.formats), one.runner,
         *(f"{one.budget.limits()[line]:g}" if line in one.budget.limits() else "–" for line in lines))
        for one in found
    ]  # fmt: skip
    header = ("target", "device", "SoC", "ram_mb", "formats", "runner", *lines)
    output.table("", header, rows, right=(3, 6, 7, 8, 9))
    output.say("The last four columns are the budget. Your own device: edgedistill init")


def profiles(as_json: options.AsJson = False) -> None:
    """List the builds that --profile knows."""
    output.choose(as_json=as_json)
    from edgedistill import catalog

    found = [catalog.load_profile(name) for name in catalog.profile_names()]
    if as_json:
        output.json_document([one.model_dump(mode="json") for one in found])
        return
    rows = [
        (one.name, one.task, one.data.train, str(one.teacher.sources[0]), len(one.student.candidates),
         " → ".join(stage.name for stage in one.stages), _about(one.name))
        for one in found
    ]  # fmt: skip
    output.table("", ("profile", "task", "data", "teacher", "students", "training", "about"), rows, right=(4,))
    output.say("Your own build: edgedistill init")


def _about(name: str) -> str:
    """The comment that a profile's file begins with."""
    from edgedistill import catalog

    first = (catalog.data_folder("profiles") / f"{name}.toml").read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def schema(
    kind: Annotated[
        Literal["target", "profile", "checkpoint", "plan", "gate", "compare"],
        typer.Argument(help="Which document the schema describes."),
    ],
) -> None:
    """Print the JSON Schema of a file that you write, for editors, or of what a command reports, for programs."""
    output.choose(as_json=True)
    from edgedistill.specs import Checkpoint, CompareReport, GateReport, PlanReport, Profile, Spec, Target

    specs: dict[str, type[Spec]] = {
        "target": Target,
        "profile": Profile,
        "checkpoint": Checkpoint,
        "plan": PlanReport,
        "gate": GateReport,
        "compare": CompareReport,
    }
    schema = specs[kind].model_json_schema()
    output.json_document({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
