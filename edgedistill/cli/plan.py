"""`edgedistill plan`: what a build would do and why, without torch and without writing anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgedistill.cli import options, output

if TYPE_CHECKING:
    from edgedistill.cli.select import Selection
    from edgedistill.pipeline.preview import Preview
    from edgedistill.specs import Candidate, Plan


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
    )
    show(chosen, select.store_root(store), baselines=baselines, explain=explain, why=why, states=why)


def show(chosen: Selection, root: Path, *, baselines: bool, explain: bool, why: bool, states: bool) -> None:
    """Make the plan and print it; `states` adds what the store has already, `why` how the rest differs."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a plan looks at what is here and fetches nothing
    from edgedistill.cli.select import naming_the_option
    from edgedistill.pipeline import preview as previews

    with naming_the_option(chosen):
        seen = previews.preview(chosen.target, chosen.profile, store=root, base=chosen.base, baselines=baselines)
    reasons = {state.name: previews.why(root, state) for state in seen.stages if not state.done} if why else {}
    if output.wants_json():
        output.json_document(_document(seen, reasons, why))
        return
    _head(seen)
    _predictions(seen.plan)
    output.table("stages", ("stage", "why"), [(stage.name, stage.why) for stage in seen.plan.stages])
    for note in seen.plan.notes:
        output.say(f"- {note}")
    if explain:
        _explain(seen.plan)
    if states:
        _states(seen, root, reasons)


def _document(seen: Preview, reasons: dict[str, list[str]], why: bool) -> dict[str, Any]:
    stages = [{"name": item.name, "key": item.key, "done": item.done} for item in seen.stages]
    document: dict[str, Any] = {
        "plan": seen.plan.model_dump(mode="json"),
        "teacher": str(seen.teacher.source) if seen.teacher else None,
        "stages": stages,
    }
    return document | {"why": reasons} if why else document


def _head(seen: Preview) -> None:
    from edgedistill.plan.search import describe

    plan, chosen = seen.plan, seen.plan.chosen
    output.say(f"{plan.profile.name} for {plan.target.title} ({plan.target.soc})", "bold")
    output.say(f"student: {describe(chosen)}: {chosen.parameters:,} parameters, {chosen.macs / 1e6:,.1f} million MACs")
    if seen.teacher:
        output.say(f"teacher: {seen.teacher.source} ({seen.teacher.source.licence or 'licence not stated'})")
    else:
        sources = ", ".join(map(str, plan.profile.teacher.sources))
        output.say(f"teacher: not on this machine yet: {sources}", "yellow")


def _predictions(plan: Plan) -> None:
    limits = plan.budget.limits()
    rows = [("size_mb", f"{plan.chosen.size.total_mb:.3f}", "computed", _limit(limits.get("size_mb")), "gated here")]
    for line in plan.chosen.predictions:
        gated = "not measured without the device" if line.quantity in plan.unmeasured else "gated here"
        spread = f"{line.low:.3g} to {line.high:.3g} ({line.confidence:.0%})"
        rows.append((line.quantity, f"{line.median:.3g}", spread, _limit(limits.get(line.quantity)), gated))
    output.table("predicted cost", ("line", "median", "interval", "limit", ""), rows, right=(1, 3))


def _limit(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _explain(plan: Plan) -> None:
    from edgedistill.plan.search import describe

    rows = [(_mark(plan, one), describe(one), f"{one.parameters:,}", f"{one.size.total_mb:.3f}", _costs(one),
             "; ".join(one.violations) or "meets the budget") for one in plan.candidates]  # fmt: skip
    header = ("", "candidate", "parameters", "size_mb", "predicted", "budget")
    output.table("candidates", header, rows, right=(2, 3))
    for line in plan.chosen.predictions:
        output.say(f"{line.quantity}: {line.method}", "bold")
        output.say("  " + " + ".join(f"{name} {value:.4g}" for name, value in line.terms.items()))


def _mark(plan: Plan, one: Candidate) -> str:
    if one == plan.chosen:
        return "chosen"
    return "possible" if one.feasible else "too big"


def _costs(one: Candidate) -> str:
    return ", ".join(f"{line.quantity} {line.median:.3g}" for line in one.predictions)


def _states(seen: Preview, root: Path, reasons: dict[str, list[str]]) -> None:
    rows = [(item.name, "already done" if item.done else "to do", item.key) for item in seen.stages]
    output.table(f"store {root}", ("stage", "state", "key"), rows)
    if not seen.teacher:
        output.say("the stages after `data` depend on the teacher's weights, which are not here", "yellow")
    output.say("measure and gate are done anew in every build")
    for name, lines in reasons.items():
        output.say(f"{name}:", "bold")
        for line in lines:
            output.say(f"  {line}")
