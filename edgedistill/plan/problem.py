"""What a search is about: the devices and their limits, the family, how quality is told, what was calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import exp, log
from statistics import NormalDist
from types import ModuleType
from typing import Any, NamedTuple

from edgedistill.plan.predict import Figures
from edgedistill.plan.quality import QualityModel
from edgedistill.predict import Calibration
from edgedistill.specs import Budget, Prediction, Profile, QuantScheme, Target

UNITS = {"size_mb": "MB", "latency_p95_ms": "ms", "peak_memory_mb": "MB", "energy_mj": "mJ"}


class Member(NamedTuple):
    """One device of the fleet; `limits` are the tighter of its own and the profile's."""

    target: Target
    limits: Mapping[str, float]
    calibration: Calibration | None


class Problem(NamedTuple):
    """Everything that decides what a student costs and whether it will do; `formats` are those of all devices."""

    members: tuple[Member, ...]
    formats: tuple[str, ...]
    profile: Profile
    family: ModuleType
    classes: int | None
    teacher_parameters: int | None
    quality: QualityModel
    stores: Mapping[str, Mapping[str, Any]]  # by format: the literals of its module, what it can store among them
    pieces: int | None = None  # of the training texts, at most as many as the profile asks for; None: not known

    @property
    def scheme(self) -> QuantScheme:
        """How a student is stored if its candidate does not say otherwise."""
        return self.profile.export.scheme

    @property
    def size_limit_mb(self) -> float:
        """The smallest of the devices' limits, as each gets the same student; infinite where none has one."""
        return min(member.limits.get("size_mb", float("inf")) for member in self.members)

    def line(self, member: int, quantity: str) -> str:
        """The name of a budget line: the first device's as it is, another's with its target before it."""
        return quantity if member == 0 else f"{self.members[member].target.name}.{quantity}"

    def limits(self) -> dict[str, float]:
        """Every limit by the name of its line; the size once, as the smallest."""
        found = {self.line(n, name): limit for n, one in enumerate(self.members) for name, limit in one.limits.items()
                 if name != "size_mb"}  # fmt: skip
        size = self.size_limit_mb
        return found if size == float("inf") else {"size_mb": size, **found}


def members(
    targets: Sequence[Target], budgets: Sequence[Budget], calibrations: Mapping[str, Calibration]
) -> tuple[Member, ...]:
    """The devices with their limits and, where there is one, what their own measurements say."""
    return tuple(
        Member(target, budget.limits(), calibrations.get(target.name))
        for target, budget in zip(targets, budgets, strict=True)
    )


def quantile(line: Prediction | Figures, confidence: float) -> float:
    """The value that the true one is at or below with `confidence` (0.5 or more).

    Either side of the median is taken as log-normal; the ends of the interval hold `line.confidence` between them.
    """
    if line.median <= 0 or line.high <= line.median:
        return line.high
    share = _share((1 + line.confidence) / 2, confidence)
    return line.median * exp(log(line.high / line.median) * share) if share != 1.0 else line.high


@cache
def _share(end: float, confidence: float) -> float:
    """How far a quantile is from the median, as a share of how far the end of the interval is."""
    return 1.0 if abs(end - confidence) < 1e-9 else NormalDist().inv_cdf(confidence) / NormalDist().inv_cdf(end)
