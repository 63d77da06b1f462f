"""Teacher assistants: students between teacher and student, each of which learns from the larger one.

Mirzadeh et al. 2020, "Improved Knowledge Distillation via Teacher Assistant": a student learns less from a teacher that
is far larger than from one in between. Their best sizes lie evenly on a log scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log
from typing import Any, NamedTuple

from edgedistill.errors import SpecError
from edgedistill.plan.costing import fill
from edgedistill.plan.problem import Problem
from edgedistill.plan.quality import FinishedBuild
from edgedistill.specs import Assistant, Candidate

# Beyond this a student often learns less from a teacher than from one between them; below it there is little left to
# gain. A rule of thumb from image and language models, not a law.
RATIO_LOW, RATIO_HIGH = 3.0, 10.0
MOST = 3
# A direct way that keeps this much leaves an assistant less to win than seeds differ by (0.3 points).
GOOD_ENOUGH = 0.005


class Measured(NamedTuple):
    """What students of the default recipe lost of their teacher's accuracy, at this ratio: means over seeds."""

    ratio: float
    direct: float
    assisted: float | None = None


# bench/results/default_build.md (three seeds) and quality.md (two seeds each way), nearest first: students of
# all-MiniLM-L6-v2 on BANKING77. They say nothing of harder tasks, and of teachers and students of another kind.
MEASURED = (Measured(31.2, 0.0020), Measured(105.3, 0.0167, 0.0164))
TASK, FAMILY, TEACHER, CLASSES, ROWS = "text_classification", "bert", 22_713_216, 77, 9_504
ALIKE = 1.5  # times: teachers and numbers of classes that are like those, and ratios of builds that are compared
FEWER = 2.0  # times fewer training rows teach a student that much less


def plan_assistants(
    problem: Problem, chosen: Candidate, builds: Sequence[FinishedBuild], request: str, rows: int | None = None
) -> tuple[tuple[Assistant, ...], str]:
    """The assistants to train, largest first, and why so many.

    Raises:
        SpecError: so many were asked for, and the family has no rule to size one.
    """
    wanted, ratio = problem.profile.assistants, chosen.teacher_ratio
    if wanted == 0:
        return (), "" if ratio is None or ratio <= RATIO_HIGH else f"no assistant: assistants = 0; {_apart(ratio)}"
    if ratio is None:
        if wanted == "auto":
            return (), ""
        raise SpecError(f"assistants = {wanted}: the teacher's size is not known, so none can lie between.")
    if wanted == "auto":
        count, why = _automatic(ratio, builds, request, _unlike(problem, rows))
    else:
        count, why = wanted, f"assistants = {wanted}, as asked; the teacher is {ratio:.1f} times the student"
    if not count:
        return (), why
    if not {"layers", "width", "heads", "ffn"} <= set(chosen.config):
        if wanted != "auto":
            family = problem.profile.student.family
            raise SpecError(
                f"assistants = {wanted}: there is no rule how to size one of family {family!r}; set it to 0."
            )
        return (), f"{_apart(ratio)}; no assistant: there is no rule how to size one of this family"
    found = tuple(_sized(problem, chosen, ratio ** (n / (count + 1))) for n in range(count, 0, -1))
    between = tuple(one for one in found if chosen.parameters < one.parameters)
    return tuple({one.parameters: one for one in between}.values()), why


def _unlike(problem: Problem, rows: int | None) -> str:
    """In what a build differs from those of `MEASURED` so much that they say nothing of it; empty: in nothing known."""
    profile, teacher, classes = problem.profile, problem.teacher_parameters, problem.classes
    if profile.task != TASK or profile.student.family != FAMILY:
        return f"they are of task {TASK} and family {FAMILY}"
    if teacher is not None and not 1 / ALIKE <= teacher / TEACHER <= ALIKE:
        return f"their teacher has {TEACHER / 1e6:.1f} million parameters, this one {teacher / 1e6:.1f}"
    if classes is not None and classes > ALIKE * CLASSES:
        return f"their data has {CLASSES} classes, this {classes}"
    if rows is not None and rows < ROWS / FEWER:
        return f"their data has {ROWS:,} training rows, this {rows:,}"
    return ""


def _automatic(ratio: float, builds: Sequence[FinishedBuild], request: str, unlike: str) -> tuple[int, str]:
    """How many, by the ratio, unless what was measured speaks for the direct way.

    Own builds count where they were asked the same but for the student; a student that was as far from its teacher, or
    farther, and lost little; or two of about this ratio, with and without an assistant.
    """
    if ratio < RATIO_LOW:
        return 0, f"the teacher is only {ratio:.1f} times the student: little to compress, and little to teach"
    if ratio <= RATIO_HIGH:
        return 0, ""
    own = [one for one in builds if one.request == request]
    direct = [one for one in own if not one.assistants and one.ratio >= ratio * 0.99]
    near = [one for one in own if 1 / ALIKE <= one.ratio / ratio <= ALIKE]
    alone, helped = ([one.gap for one in near if bool(one.assistants) == with_one] for with_one in (False, True))
    if alone and helped:
        best, other = min(alone), min(helped)
        if best <= other + GOOD_ENOUGH / 2:
            return 0, f"{_apart(ratio)}; no assistant: this build lost {best:.2%} without and {other:.2%} with one"
    elif direct and min(one.gap for one in direct) <= GOOD_ENOUGH:
        lost = min(one.gap for one in direct)
        return 0, f"{_apart(ratio)}; no assistant: a finished build of this kind lost {lost:.2%} without one"
    shipped = next((one for one in MEASURED if ratio <= one.ratio * 1.01), None)
    if not own and shipped and not unlike:
        beside = "" if shipped.assisted is None else f" and {shipped.assisted:.1%} with one"
        return 0, (
            f"{_apart(ratio)}; no assistant: a default build {shipped.ratio:.0f} times smaller lost"
            f" {shipped.direct:.1%} of its teacher's accuracy without one{beside}"
        )
    count = min(ceil(log(ratio) / log(RATIO_HIGH)) - 1, MOST)
    aside = f"; the builds that were measured without one say nothing of this one: {unlike}" if unlike else ""
    why = f"{_apart(ratio)}: assistants between them: {count}, evenly on a log scale (Mirzadeh et al. 2020){aside}"
    return count, why


def _apart(ratio: float) -> str:
    return f"the teacher is {ratio:.1f} times the student, outside {RATIO_LOW:g} to {RATIO_HIGH:g}"


def _sized(problem: Problem, chosen: Candidate, times: float) -> Assistant:
    """The student's own shape, wider and deeper, nearest to so many times its parameters.

    Width grows in steps of the student's head, depth in whole layers, both by about the same factor.
    """
    base: dict[str, Any] = dict(chosen.config)
    layers, width, heads = int(base["layers"]), int(base["width"]), int(base["heads"])
    head, wanted = width // heads, times * chosen.parameters
    best: tuple[float, dict[str, Any], int] | None = None
    for depth in range(layers, 4 * layers + 9):
        for wide in range(heads, 8 * heads + 1):
            given = {**base, "layers": depth, "width": wide * head, "heads": wide,
                     "ffn": int(base["ffn"]) * wide // heads}  # fmt: skip
            try:
                count = problem.family.parameters(fill(problem, given, "assistant"))
            except SpecError:
                continue
            shape = abs(log(depth / layers) - log(wide / heads))
            distance = abs(log(count / wanted)) + 0.1 * shape
            if best is None or distance < best[0]:
                best = distance, given, count
    assert best is not None  # the student itself is among them
    return Assistant(config=best[1], parameters=best[2])
