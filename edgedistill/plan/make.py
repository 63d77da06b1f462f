"""`make_plan`: the whole plan from a target and a profile, or the reason why there is none."""

from __future__ import annotations

from edgedistill.plan.check import check
from edgedistill.plan.infeasible import UNITS, infeasible
from edgedistill.plan.search import candidates, choose, confident, describe, predicted
from edgedistill.plan.stages import stages
from edgedistill.specs import Budget, Candidate, Plan, Profile, Target

# Beyond this a student often learns less from a teacher than from one between them (Mirzadeh et al. 2020); below it
# there is little left to gain. A rule of thumb from image and language models, not a law.
RATIO_LOW, RATIO_HIGH = 3.0, 10.0
RANKED_FROM = 1.5  # two predictions nearer than this are in the wrong order too often (the rows in predict/data)


def make_plan(
    target: Target,
    profile: Profile,
    *,
    rows: int | None = None,
    classes: int | None = None,
    teacher_parameters: int | None = None,
) -> Plan:
    """Choose the student and lay out the stages; the same plan for the same input, nothing is read but plug-ins.

    `rows` (training texts), `classes` and `teacher_parameters` sharpen the plan when they are known already.

    Raises:
        SpecError: for an unknown name, a wrong parameter or candidate, or a scheme that a format cannot hold.
        InfeasibleError: if every candidate violates the budget; the message holds the smallest relaxation.
    """
    budget = target.budget.tightened(profile.budget)
    family = check(target, profile)
    found = candidates(target, profile, family, budget, classes, teacher_parameters)
    layout = stages(target, profile, budget, found[0], rows)  # refuses a wrong loss before it judges the budget
    chosen = choose(profile, budget, found)
    if chosen is None:
        raise infeasible(target, profile, budget, found)
    if chosen is not found[0]:
        layout = stages(target, profile, budget, chosen, rows)
    notes = [*_choice(profile, budget, chosen, found), *_gaps(budget, chosen), *_ratio(chosen)]
    if classes is None and "classes" not in profile.student.candidates[found.index(chosen)]:
        notes.append(f"the number of classes is not known yet: sizes are those for {chosen.config.get('classes')}")
    return Plan(
        target=target,
        profile=profile,
        budget=budget,
        chosen=chosen,
        candidates=found,
        stages=layout,
        formats=target.formats,
        unmeasured=_unmeasured(target, budget),
        notes=tuple(notes),
    )


def _unmeasured(target: Target, budget: Budget) -> tuple[str, ...]:
    """Lines of the budget that stay predictions without the device; energy has no meter on a host either."""
    measured = {"size_mb", "latency_p95_ms", "peak_memory_mb"} if target.runner == "host" else {"size_mb"}
    return tuple(name for name in budget.limits() if name not in measured)


def _choice(profile: Profile, budget: Budget, chosen: Candidate, found: tuple[Candidate, ...]) -> list[str]:
    feasible = [one for one in found if one.feasible]
    sure = [one for one in feasible if confident(budget, one)]
    why = {
        "quality": "most parameters, which stand in for quality until it is measured",
        "size": "fewest parameters",
        "latency": "lowest predicted latency",
    }[profile.optimize_for]
    notes = [
        f"chosen: {describe(chosen)}: {why}, of {len(sure) or len(feasible)} candidates that meet the budget"
        f" {'at the high end of every prediction' if sure else 'at the low end'}"
        f" ({len(feasible)} of {len(found)} can meet it)"
    ]
    if not sure:
        limits = budget.limits()
        open_lines = [p.quantity for p in chosen.predictions if p.high > limits.get(p.quantity, p.high)]
        notes.append(f"not certain before it is measured: {', '.join(open_lines)}")
    fastest = predicted(chosen, "latency_p95_ms")
    near = [one for one in feasible if one is not chosen and predicted(one, "latency_p95_ms") < RANKED_FROM * fastest]
    if profile.optimize_for == "latency" and near:
        notes.append(f"{len(near)} more candidates are predicted within x{RANKED_FROM}, too near to rank: measure them")
    return notes


def _gaps(budget: Budget, chosen: Candidate) -> list[str]:
    seen = {"size_mb", *(line.quantity for line in chosen.predictions)}
    return [
        f"{name}: not predicted, the target lacks the facts for it; the limit of {limit:g} {UNITS[name]} was not used"
        for name, limit in budget.limits().items()
        if name not in seen
    ]


def _ratio(chosen: Candidate) -> list[str]:
    ratio = chosen.teacher_ratio
    if ratio is None or RATIO_LOW <= ratio <= RATIO_HIGH:
        return []
    if ratio < RATIO_LOW:
        return [f"the teacher is only {ratio:.1f} times the student: little to compress, and little to teach"]
    return [
        f"the teacher is {ratio:.1f} times the student, outside {RATIO_LOW:g} to {RATIO_HIGH:g}: a teacher assistant in"
        " between would be considered. This profile trains none, and whether one helps here is not known: the rule"
        " counts embedding tables too, and only the measured quality decides"
    ]
