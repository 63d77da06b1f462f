"""Why no candidate fits: the lines that bind, the best that can be had for each, the smallest limits that would do."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10

from edgedistill.errors import InfeasibleError
from edgedistill.plan.search import describe, needed
from edgedistill.specs import Budget, Candidate, Profile, Target

UNITS = {"size_mb": "MB", "latency_p95_ms": "ms", "peak_memory_mb": "MB", "energy_mj": "mJ"}


def infeasible(target: Target, profile: Profile, budget: Budget, found: Sequence[Candidate]) -> InfeasibleError:
    """The error for a budget that every candidate in `found` violates."""
    limits = budget.limits()
    needs = [needed(budget, one) for one in found]
    binding = [name for name in limits if all(name in need for need in needs)]
    lines = [f"no student of profile {profile.name!r} can meet the budget of target {target.name!r}:"]
    if binding:
        lines += [_line(name, target, profile, limits[name], found, needs) for name in binding]
    else:
        lines.append("  each limit can be met alone, but no candidate meets them all:")
        lines += [f"  {describe(one)}: {'; '.join(one.violations)}" for one in found]
    best, relaxed = relaxation(budget, found)
    written = ", ".join(f"{name} = {value:g}" for name, value in relaxed.items())
    files = _too_tight(target, profile, relaxed)
    lines.append(f"  smallest relaxation: {written}, which makes ({describe(best)}) feasible.")
    lines.append(f"  Either write it in [budget] of the {files}, or add smaller student.candidates.")
    return InfeasibleError("\n".join(lines))


def relaxation(budget: Budget, found: Sequence[Candidate]) -> tuple[Candidate, dict[str, float]]:
    """The candidate nearest to the budget and the limits that would let it in, rounded up to three digits.

    Near is the largest factor by which one of its lines has to grow; then the number of lines.
    """
    limits = budget.limits()

    def distance(one: Candidate) -> tuple[float, int]:
        need = needed(budget, one)
        return max(value / limits[name] for name, value in need.items()), len(need)

    best = min(found, key=distance)
    return best, {name: _round_up(value) for name, value in needed(budget, best).items()}


def _line(
    name: str,
    target: Target,
    profile: Profile,
    limit: float,
    found: Sequence[Candidate],
    needs: Sequence[dict[str, float]],
) -> str:
    best = min(range(len(found)), key=lambda number: needs[number][name])
    need, unit = needs[best][name], UNITS[name]
    how = "predicted size" if name == "size_mb" else "low end of the prediction"
    files = _too_tight(target, profile, {name: need})
    return (
        f"  {name}: limit {limit:g} {unit} (from the {files}); best achievable {_round_up(need):g} {unit} ({how})"
        f" with ({describe(found[best])})"
    )


def _too_tight(target: Target, profile: Profile, wanted: dict[str, float]) -> str:
    """Which of both files hold a limit below what is wanted."""
    files = {f"target {target.name!r}": target.budget.limits(), f"profile {profile.name!r}": profile.budget.limits()}
    tight = [who for who, limits in files.items() if any(limits.get(n, need) < need for n, need in wanted.items())]
    return " and the ".join(tight)


def _round_up(value: float) -> float:
    """To three significant digits, never below `value`."""
    step = 10.0 ** (floor(log10(value)) - 2)
    rounded = float(f"{ceil(value / step) * step:.3g}")
    return rounded if rounded >= value else float(f"{rounded + step:.3g}")
