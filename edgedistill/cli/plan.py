"""`edgedistill plan`: what a build would do and why, without torch and without training anything."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgedistill.cli import options, output

if TYPE_CHECKING:
    from edgedistill.cli.select import Selection
    from edgedistill.pipeline.preview import Preview


def plan(
    target: options.TargetName,
    profile: options.ProfileName = "default",
    data: options.DataFile = None,
    held_out: options.HeldOutFile = None,
    teacher: options.TeacherName = None,
    store: options.StoreFolder = None,
    seed: options.Seed = None,
    baselines: options.Baselines = False,
    budget: options.Limits = None,
    formats: options.Formats = None,
    search: options.Search = False,
    optimize_for: options.OptimizeFor = None,
    confidence: options.Confidence = None,
    assistants: options.Assistants = None,
    gpu: Annotated[str, typer.Option("--gpu", metavar="NAME", help="Also estimate training on it, e.g. t4.")] = "",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw the Pareto front into a file.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Every candidate, the reasons, and the terms of each prediction.")
    ] = False,
    why: Annotated[
        bool, typer.Option("--why", help="For each stage, what differs from the one finished last.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show the student, the stages and the predicted cost, or why there is no plan."""
    output.choose(as_json=as_json)
    from edgedistill.cli import select

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
    show(chosen, root, baselines=baselines, explain=explain, why=why, states=why, gpu=gpu, plot=plot)


def show(
    chosen: Selection,
    root: Path,
    *,
    baselines: bool,
    explain: bool,
    why: bool,
    states: bool,
    gpu: str = "",
    plot: Path | None = None,
) -> None:
    """Make the plan and print it; `states` adds what the store has already, `why` how the rest differs."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a plan looks at what is here and fetches nothing
    from edgedistill.cli import views
    from edgedistill.cli.select import naming_the_option
    from edgedistill.pipeline import preview as previews

    if plot is not None:
        _check_plot(plot)
    with naming_the_option(chosen):
        seen = previews.preview(
            chosen.target,
            chosen.profile,
            store=root,
            base=chosen.base,
            fleet=chosen.fleet,
            baselines=baselines,
            gpu=gpu,
        )
    if plot is not None:
        _draw(seen, plot)
    reasons = {state.name: previews.why(root, state) for state in seen.stages if not state.done} if why else {}
    if output.wants_json():
        output.json_document(_document(seen, reasons, why))
        return
    views.plan_view(seen, explain=explain)
    if states:
        views.states_view(seen, root, reasons)
    if plot is not None:
        output.say(f"Pareto front: {plot}")


def _check_plot(path: Path) -> None:
    """Before the work of planning.

    Raises:
        SpecError: the file's name does not end in .svg, or it is a folder.
    """
    from edgedistill.errors import SpecError

    if path.suffix.lower() != ".svg":
        raise SpecError(f"--plot {path}: writes SVG; give a name that ends in .svg.")
    with contextlib.suppress(OSError):  # a name that is too long is told when it is written
        if path.is_dir():
            raise SpecError(f"--plot {path}: is a folder. Give a file.")


def _draw(seen: Preview, path: Path) -> None:
    """Write the front as SVG.

    Raises:
        SpecError: there is nothing to compare.
    """
    from edgedistill.errors import SpecError
    from edgedistill.report.front import draw_alone
    from edgedistill.store import write_whole, writing

    drawn = draw_alone(seen.plan)
    if drawn is None:
        raise SpecError(f"--plot {path}: there is only one student to draw; name more candidates, or add --search.")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, drawn.encode())


def _document(seen: Preview, reasons: dict[str, list[str]], why: bool) -> dict[str, Any]:
    from edgedistill.specs import PlanReport, StageKey

    report = PlanReport(
        plan=seen.plan,
        teacher=str(seen.teacher.source) if seen.teacher else None,
        stages=tuple(StageKey(name=item.name, key=item.key, done=item.done) for item in seen.stages),
        why={name: tuple(lines) for name, lines in reasons.items()} if why else None,
    )
    return report.model_dump(mode="json", exclude=None if why else {"why"})
