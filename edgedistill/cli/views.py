"""A plan as tables and a tree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.cli import output

if TYPE_CHECKING:
    from edgedistill.pipeline.preview import Preview
    from edgedistill.specs import Candidate, Plan, Prediction
ASIDE = {  # lines that no budget has: what they are of
    "first_load_ms": "until the first inference can start",
    "sustained_latency_p95_ms": "after minutes without a pause",
    "battery_percent_per_hour": "at one inference a second",
}
SIZE_ERROR = 0.01  # between a predicted and an exported file, at most (tests/plan/test_size_held_out.py)


def plan_view(seen: Preview, *, explain: bool) -> None:
    """The choice, what it is predicted to cost, the stages with their reasons, and what else was possible."""
    _head(seen)
    _predictions(seen.plan)
    _stages(seen.plan)
    _efforts(seen.plan)
    for note in seen.plan.notes:
        output.say(f"- {note}")
    _front(seen.plan, explain)
    if explain:
        _explain(seen.plan)


def _head(seen: Preview) -> None:
    from edgedistill.plan.naming import describe

    plan, chosen = seen.plan, seen.plan.chosen
    devices = " and ".join(f"{one.title} ({one.soc})" for one in (plan.target, *plan.fleet))
    output.say(f"{plan.profile.name} for {devices}", "bold")
    output.say(f"student: {describe(chosen)}: {chosen.parameters:,} parameters, {chosen.macs / 1e6:,.1f} million MACs")
    if seen.teacher:
        output.say(f"teacher: {seen.teacher.source} ({seen.teacher.source.licence or 'licence not stated'})")
    else:
        sources = ", ".join(map(str, plan.profile.teacher.sources))
        output.say(f"teacher: not on this machine yet: {sources}", "yellow")
    counts = plan.search
    if counts is not None and plan.profile.student.space is not None:
        output.say(
            f"searched: {counts.combinations:,} combinations: {counts.invalid:,} are no student, {counts.excluded:,} "
            f"excluded by a bound, {counts.evaluated:,} evaluated; {counts.feasible:,} can meet the budget, "
            f"{counts.sure:,} with {plan.profile.confidence:.0%} confidence in each line"
        )


def _predictions(plan: Plan) -> None:
    limits = plan.budget.limits()
    size = plan.chosen.size.total_mb
    near = f"{(1 - SIZE_ERROR) * size:.3f} to {(1 + SIZE_ERROR) * size:.3f} (±{SIZE_ERROR:.0%})"
    rows = [("size_mb", f"{size:.3f}", near, _limit(limits.get("size_mb")), "computed", "gated here")]
    for name, line, limit in _lines(plan):
        gated = "not measured without the device" if limit is None or name in plan.unmeasured else "gated here"
        gated = ASIDE.get(line.quantity, gated)
        spread = f"{line.low:.3g} to {line.high:.3g} ({line.confidence:.0%})"
        rows.append((name, f"{line.median:.3g}", spread, _limit(limit), line.level, gated))
    told = plan.chosen.quality
    if told is not None:
        spread = f"{told.low:.2%} to {told.high:.2%} ({told.confidence:.0%})"
        floor = plan.profile.quality.retained_min
        least = "–" if floor is None else f"≥ {floor:.2%}"
        rows.append(("quality kept", f"{told.median:.2%}", spread, least, "expected", "gated here"))
    output.table("predicted cost", ("line", "median", "interval", "limit", "how it is known", ""), rows, right=(1, 3))


def _lines(plan: Plan) -> Iterator[tuple[str, Prediction, float | None]]:
    """Every predicted line with its name and limit; those of further devices carry their target."""
    for line in plan.chosen.predictions:
        yield line.quantity, line, plan.budget.limits().get(line.quantity)
    for one in plan.fleet:
        limits = one.budget.tightened(plan.profile.budget).limits()
        for line in plan.chosen.others[one.name]:
            yield f"{one.name}.{line.quantity}", line, limits.get(line.quantity)


def _limit(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _stages(plan: Plan) -> None:
    """The stages as a tree: what is read and prepared, who teaches whom, what is written and judged."""
    training = {spec.name for spec in plan.profile.stages}
    groups: dict[str, list[tuple[str, str]]] = {"prepare": [], "train": [], "write and judge": []}
    group = "prepare"
    for stage in plan.stages:
        teaches = stage.name in training or stage.name.startswith("assistant ")
        group = "train" if teaches else "write and judge" if group != "prepare" else group
        groups[group].append((stage.name, stage.why))
    output.tree("stages", groups)


def _efforts(plan: Plan) -> None:
    rows = [
        (one.machine, _time(one.seconds), f"{_time(one.seconds_low)} to {_time(one.seconds_high)}",
         f"{one.peak_memory_mb / 1e3:.1f} GB", one.method)
        for one in plan.efforts
    ]  # fmt: skip
    if rows:
        output.table("estimated build", ("machine", "time", "interval", "memory", "how"), rows, right=(1, 3))


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.1f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def _front(plan: Plan, explain: bool) -> None:
    if len(plan.front) < 2:
        return
    most = len(plan.front) if explain else 12
    step = (len(plan.front) - 1) / max(most - 1, 1)
    kept = sorted({round(n * step) for n in range(min(most, len(plan.front)))})
    points = [point for n, point in enumerate(plan.front) if n in kept or point.chosen]
    rows = [
        ("chosen" if one.chosen else one.meets, one.student, f"{one.expected_quality:.2%}", f"{one.size_mb:.3f}",
         _figure(one.latency_p95_ms), _figure(one.peak_memory_mb), _figure(one.energy_mj))
        for one in points
    ]  # fmt: skip
    some = len(points) < len(plan.front)
    title = "students that none beats in everything"
    title += f" ({len(points)} of {len(plan.front)}; --explain shows all)" if some else ""
    header = ("", "student", "quality kept", "size_mb", "latency_p95_ms", "peak_memory_mb", "energy_mj")
    output.table(title, header, rows, right=range(2, 7))
    for name in plan.ties:
        output.say(f"  tie in latency: {name}")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _explain(plan: Plan) -> None:
    from edgedistill.plan.naming import describe

    rows = [(_mark(plan, one), describe(one), f"{one.parameters:,}", f"{one.size.total_mb:.3f}", _costs(one),
             "; ".join(one.violations) or "meets the budget") for one in plan.candidates]  # fmt: skip
    header = ("", "candidate", "parameters", "size_mb", "predicted", "budget")
    output.table("candidates", header, rows, right=(2, 3))
    for name, line, _ in _lines(plan):
        output.say(f"{name}: {line.method}", "bold")
        output.say("  " + " + ".join(f"{term} {value:.4g}" for term, value in line.terms.items()))
    if plan.chosen.quality is not None:
        output.say(f"quality kept: {plan.chosen.quality.method}", "bold")


def _mark(plan: Plan, one: Candidate) -> str:
    if one == plan.chosen:
        return "chosen"
    return "possible" if one.feasible else "too big"


def _costs(one: Candidate) -> str:
    return ", ".join(f"{line.quantity} {line.median:.3g}" for line in one.predictions)


def states_view(seen: Preview, root: Path, reasons: dict[str, list[str]]) -> None:
    """What the store has already, and how the rest differs from what it has."""
    rows = [(item.name, "already done" if item.done else "to do", item.key) for item in seen.stages]
    output.table(f"store {root}", ("stage", "state", "key"), rows)
    if not seen.teacher:
        output.say("the stages after `data` depend on the teacher's weights, which are not here", "yellow")
    output.say("measure and gate are done anew in every build")
    for name, lines in reasons.items():
        output.say(f"{name}:", "bold")
        for line in lines:
            output.say(f"  {line}")
