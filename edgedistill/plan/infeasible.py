"""Why no candidate fits: the lines that bind, the best that can be had for each, the smallest limits that would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import NamedTuple

from edgedistill.errors import InfeasibleError
from edgedistill.plan.costing import needs_of
from edgedistill.plan.naming import describe
from edgedistill.plan.problem import UNITS, Problem
from edgedistill.specs import Candidate


class Beyond(NamedTuple):
    """What a search of the whole family reaches where written students do not: the student that it would choose of so
    many `feasible` ones, else those that need least."""

    found: tuple[Candidate, ...]
    feasible: int


def infeasible(problem: Problem, found: Sequence[Candidate], beyond: Beyond | None = None) -> InfeasibleError:
    """The error for a budget that every candidate violates; `found` holds those that need least of each line."""
    limits = problem.limits()
    needs = [needs_of(problem, one) for one in found]
    least = {name: min(need[name] for need in needs) for name in limits if all(name in need for need in needs)}
    binding = [name for name, need in least.items() if need > limits[name]]
    names = ", ".join(repr(member.target.name) for member in problem.members)
    many = len(problem.members) > 1
    devices = f"targets {names}" if many else f"target {names}"
    lines = [f"no student of profile {problem.profile.name!r} can meet the budget of {devices}:"]
    if binding:
        lines += [_line(problem, name, limits[name], found, needs) for name in binding]
    else:
        lines.append("  each limit can be met alone, but no candidate meets them all:")
        lines += [f"  {describe(one)}: {'; '.join(one.violations)}" for one in found]
    fine = [
        f"{name} {_round_up(need):g} of {limits[name]:g} {_unit(name)}"
        for name, need in least.items()
        if need <= limits[name]
    ]
    if fine and binding:
        lines.append(f"  the other limits leave room; the least that a student needs: {', '.join(fine)}")
    best, relaxed = relaxation(limits, found, needs)
    written = ", ".join(f"{name} = {value:g}" for name, value in relaxed.items())
    files = _too_tight(problem, relaxed)
    smaller = "widen student.space" if problem.profile.student.space else "add smaller student.candidates"
    lines.append(f"  smallest relaxation: {written}, which makes ({describe(best)}) feasible.")
    if beyond:
        lines.append(_beyond(problem, beyond, relaxed))
    lines.append(f"  Either write it in [budget] of the {files}, or {smaller}.")
    return InfeasibleError("\n".join(lines))


def _beyond(problem: Problem, beyond: Beyond, relaxed: Mapping[str, float]) -> str:
    """What `--search` would reach, in a line."""
    limits = problem.limits()
    if beyond.feasible:
        best = beyond.found[0]
        worth = (
            "" if best.quality is None else f", expected to keep {best.quality.median:.1%} of the teacher's accuracy"
        )
        many = f"  With --search {beyond.feasible:,} students can meet it as it is"
        return f"{many}; it would take ({describe(best)}){worth}."
    best, least = relaxation(limits, beyond.found, [needs_of(problem, one) for one in beyond.found])
    if _farthest(limits, least) >= _farthest(limits, relaxed):
        return "  --search would find nothing nearer."
    written = ", ".join(f"{name} = {value:g}" for name, value in least.items())
    return f"  With --search less is enough: {written} makes ({describe(best)}) feasible."


def _farthest(limits: Mapping[str, float], relaxed: Mapping[str, float]) -> float:
    return max(value / limits[name] for name, value in relaxed.items())


def relaxation(
    limits: Mapping[str, float], found: Sequence[Candidate], needs: Sequence[Mapping[str, float]]
) -> tuple[Candidate, dict[str, float]]:
    """The candidate nearest to the budget and the limits that would let it in, rounded up to three digits.

    Near is the largest factor by which one of its lines has to grow; then the number of lines.
    """
    broken = [{name: value for name, value in need.items() if value > limits[name]} for need in needs]

    def distance(number: int) -> tuple[float, int]:
        return max(value / limits[name] for name, value in broken[number].items()), len(broken[number])

    best = min(range(len(found)), key=distance)
    return found[best], {name: _round_up(value) for name, value in broken[best].items()}


def _line(
    problem: Problem, name: str, limit: float, found: Sequence[Candidate], needs: Sequence[Mapping[str, float]]
) -> str:
    best = min(range(len(found)), key=lambda number: needs[number][name])
    need, unit = needs[best][name], _unit(name)
    how = "predicted size" if name == "size_mb" else "low end of the prediction"
    return (
        f"  {name}: limit {limit:g} {unit} (from the {_too_tight(problem, {name: need})}); best achievable"
        f" {_round_up(need):g} {unit} ({how}) with ({describe(found[best])})"
    )


def _unit(name: str) -> str:
    return UNITS[name.rpartition(".")[2]]


def _too_tight(problem: Problem, wanted: Mapping[str, float]) -> str:
    """Which of the files hold a limit below what is wanted."""
    tight: dict[str, None] = {}
    for name, need in wanted.items():
        device, _, line = name.rpartition(".")
        for number, member in enumerate(problem.members):
            theirs = line == "size_mb" or device == (member.target.name if number else "")
            if theirs and member.target.budget.limits().get(line, need) < need:
                tight[f"target {member.target.name!r}"] = None
        if problem.profile.budget.limits().get(line, need) < need:
            tight[f"profile {problem.profile.name!r}"] = None
    return " and the ".join(tight)


def _round_up(value: float) -> float:
    """To three significant digits, never below `value`."""
    step = 10.0 ** (floor(log10(value)) - 2)
    rounded = float(f"{ceil(value / step) * step:.3g}")
    return rounded if rounded >= value else float(f"{rounded + step:.3g}")
