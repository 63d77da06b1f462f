"""`make_plan`: the whole plan from a target and a profile, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

from edgedistill import catalog
from edgedistill.plan.assistants import plan_assistants
from edgedistill.plan.check import check, check_chosen
from edgedistill.plan.choose import RANKED_FROM, SAME_QUALITY
from edgedistill.plan.methods import method_notes
from edgedistill.plan.naming import describe
from edgedistill.plan.problem import UNITS, Problem, members
from edgedistill.plan.quality import FinishedBuild, quality_model
from edgedistill.plan.search import Found, search
from edgedistill.plan.stages import check_losses, stages
from edgedistill.plan.vocabulary import most_pieces, within
from edgedistill.predict import Calibration
from edgedistill.specs import Budget, Candidate, Plan, Profile, Target

AIMS = {
    "quality": "best expected quality",
    "size": "smallest file",
    "latency": "lowest predicted latency",
    "battery": "lowest predicted energy",
}
ONE_POWER = (
    "battery chooses as latency does: energy is the power of the whole phone times time. The published energies of CPUs"
    " (families of networks in fp32, 0.13 to 0.19 nJ for each multiply-accumulate) tell neither bytes from arithmetic"
    " nor int8 from fp32, so no student is known to draw less power than another"
)
LITERT = ("tflite", "litertlm")  # formats of the runtime whose costs the lines of a plan are
FACTS = {
    "latency_p95_ms": "one_core_fp32_gflops of its CPU",
    "energy_mj": "battery_wh, as only whole phones' power is published",
}


def make_plan(
    target: Target,
    profile: Profile,
    *,
    fleet: Sequence[Target] = (),
    rows: int | None = None,
    classes: int | None = None,
    teacher_parameters: int | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    builds: Sequence[FinishedBuild] = (),
    request: str = "",
    pieces: int | None = None,
) -> Plan:
    """Choose the student and lay out the stages; the same plan for the same input, nothing is read but plug-ins.

    `fleet` are further devices whose budgets must hold too. `rows` (training texts), `classes`, `teacher_parameters`
    and `pieces` (of those texts, at most as many as a student may keep) sharpen the plan when they are known already.
    `calibrations` say by target what was measured on it; `builds` are finished ones, of which those with the same
    `request` differ in the student only.

    Raises:
        SpecError: for an unknown name, a wrong parameter or candidate, or a scheme that a format cannot hold.
        InfeasibleError: if every candidate violates the budget; the message holds the smallest relaxation.
    """
    everyone = (target, *fleet)
    asked = most_pieces(profile.student)
    if pieces is not None:
        profile = profile.model_copy(update={"student": within(profile.student, pieces)})
    budgets = [one.budget.tightened(profile.budget) for one in everyone]
    family = check(target, profile, fleet)
    check_losses(profile)  # refuses a wrong loss before it judges the budget
    method = method_notes(profile, rows)
    problem = _problem(everyone, budgets, profile, family, classes, teacher_parameters, calibrations or {}, builds)
    found = search(problem._replace(pieces=pieces))
    chosen = found.chosen
    check_chosen(profile, family, chosen.config, problem.formats)
    between, why = plan_assistants(problem, chosen, builds, request, rows)
    notes = [*_choice(problem, found), *_gaps(problem, chosen), *_unused(budgets), *([why] if why else []), *method]
    if classes is None and chosen.config.get("classes", 0) == _default_classes(family):
        notes.append(f"the number of classes is not known yet: sizes are those for {chosen.config['classes']}")
    if pieces is not None and pieces < asked:
        notes.append(f"the training texts have {pieces} word pieces of the teacher's, of the {asked} asked for at most")
    device, resolved = target.model_copy(update={"formats": problem.formats}), with_choice(profile, chosen)
    budget = budgets[0].model_copy(update={"size_mb": min((b.size_mb for b in budgets if b.size_mb), default=None)})
    return Plan(
        target=device,
        fleet=tuple(fleet),
        profile=resolved,
        budget=budget,
        chosen=chosen,
        candidates=found.candidates,
        search=found.counts,
        front=found.front,
        ties=found.ties,
        assistants=between,
        stages=stages(device, resolved, budget, chosen, rows, between, fleet=everyone),
        formats=problem.formats,
        unmeasured=_unmeasured(problem),
        notes=tuple(notes),
    )


def _default_classes(family: ModuleType) -> int | None:
    """None: its students make no classes, but text."""
    field = family.Config.model_fields.get("classes")
    return None if field is None else field.default


def with_choice(profile: Profile, chosen: Candidate) -> Profile:
    """The profile with the scheme and the vocabulary of the chosen student."""
    vocabulary = chosen.config.get("vocabulary", profile.student.vocabulary)
    if chosen.scheme is not None:
        profile = profile.model_copy(update={"export": profile.export.model_copy(update={"scheme": chosen.scheme})})
    if vocabulary == profile.student.vocabulary:
        return profile
    return profile.model_copy(update={"student": profile.student.model_copy(update={"vocabulary": vocabulary})})


def _problem(
    everyone: Sequence[Target],
    budgets: Sequence[Budget],
    profile: Profile,
    family: ModuleType,
    classes: int | None,
    teacher: int | None,
    calibrations: Mapping[str, Calibration],
    builds: Sequence[FinishedBuild],
) -> Problem:
    formats = tuple(dict.fromkeys(name for one in everyone for name in one.formats))
    return Problem(
        members=members(everyone, budgets, calibrations),
        formats=formats,
        profile=profile,
        family=family,
        classes=classes,
        teacher_parameters=teacher,
        quality=quality_model(teacher, [one for one in builds if one.family == profile.student.family]),
        stores={name: catalog.constants("exporters", name) for name in formats},
    )


def _unmeasured(problem: Problem) -> tuple[str, ...]:
    """Lines of the budget that stay predictions without the device; energy has no meter on a host either."""
    found = []
    for number, member in enumerate(problem.members):
        host = member.target.runner == "host" and number == 0
        measured = {"size_mb", "latency_p95_ms", "peak_memory_mb"} if host else {"size_mb"}
        found += [problem.line(number, name) for name in member.limits if name not in measured]
    return tuple(found)


def _choice(problem: Problem, found: Found) -> list[str]:
    counts, chosen, profile = found.counts, found.chosen, problem.profile
    sure = bool(counts.sure)
    share = f"with {profile.confidence:.0%} confidence in each line" if sure else "at the low end of the predictions"
    wanted, entry = profile.optimize_for, found.choice.entry
    powered, timed = entry.energy_mj > 0, entry.latency_ms > 0
    aim = AIMS["latency" if wanted == "battery" and not powered else wanted]
    if wanted in ("latency", "battery") and not timed:
        aim = f"{AIMS['quality']}, as no time is predicted"
    if profile.optimize_for == "quality" and profile.student.space is not None:
        aim = f"the fastest within {SAME_QUALITY:.1%} of the {aim}"
    notes = [
        f"chosen: {describe(chosen)}: {aim}, of {counts.sure or counts.feasible} students that"
        f" meet the budget {share} ({counts.feasible} of {counts.combinations - counts.invalid} can meet it)"
    ]
    if wanted == "battery" and timed and not powered:
        notes.append("energy is not predicted for this device: the lowest latency stands in for it, as power is alike")
    elif wanted == "battery" and powered:
        notes.append(ONE_POWER)
    if not found.choice.reaches_floor:
        notes.append(
            f"no student that meets the budget is expected to keep {profile.quality.retained_min:.1%} of the teacher's"
            " accuracy: the best of them was taken"
        )
    if chosen.uncertain:
        notes.append(f"not certain before it is measured: {', '.join(chosen.uncertain)}")
    if found.ties_total and profile.optimize_for in ("latency", "battery"):
        notes.append(
            f"{found.ties_total} more candidates are predicted within x{RANKED_FROM}, too near to rank: measure them"
        )
    if chosen.scheme is not None and all(stage.scales == "absmax" for stage in profile.stages):
        notes.append('some weights have 4 bits: scales = "mse" or "learned" in the last stage keeps more of them')
    return notes


def _unused(budgets: Sequence[Budget]) -> list[str]:
    """Limits that say nothing about a student that makes no text, as those that a build can train."""
    lines = dict.fromkeys(line for budget in budgets for line in budget.text_limits())
    return [f"{line}: this student makes no text; the limit was not used" for line in lines]


def _lacking(target: Target, line: str) -> str:
    """The fact without which a line is not predicted; energy is power times time, so it may be that of latency."""
    timeless = line == "energy_mj" and target.battery_wh is not None
    return FACTS.get("latency_p95_ms" if timeless else line, "its runtime")


def _gaps(problem: Problem, chosen: Candidate) -> list[str]:
    """What a device does not state, and which lines of the budget are therefore not predicted."""
    notes = []
    for member, lines in zip(problem.members, (chosen.predictions, *chosen.others.values()), strict=True):
        seen = {"size_mb", *(line.quantity for line in lines)}
        lost = [name for name in UNITS if name not in seen]
        said = ", ".join(name for name in UNITS if name in seen)
        for name in lost:
            limit = member.limits.get(name)
            unused = "" if limit is None else f"; the limit of {limit:g} {UNITS[name]} was not used"
            notes.append(
                f"{name}: not predicted for {member.target.name}, the target lacks the facts for it: "
                f"{_lacking(member.target, name)}{unused}; {said} can still be said"
            )
        if member.target.formats[0] not in LITERT:
            notes.append(
                f"{member.target.name}: time, memory and energy are foretold of a .tflite on its CPU; how"
                f" {member.target.formats[0]} runs there is not predicted"
            )
        if member.calibration:
            notes.append(
                f"{member.target.name}: predictions rescaled by measurements on it "
                f"({member.calibration.runtime_build}; {max(member.calibration.anchors.values())} anchors)"
            )
    return notes
