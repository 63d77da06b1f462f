"""The plan: which student, which stages, what it will cost, and why. Made before anything slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, JsonValue

from edgedistill.specs.base import Spec
from edgedistill.specs.profile import Profile
from edgedistill.specs.quant import QuantScheme
from edgedistill.specs.target import Budget, Target


class Prediction(Spec):
    """A predicted figure: median and interval, how it was made and from which terms."""

    quantity: str
    unit: str
    median: float
    low: float
    high: float
    confidence: float
    method: str
    terms: Mapping[str, float]
    level: str = Field(default="", description="how it is known: calibrated, scaled from another device, fitted, ...")


class SizeEstimate(Spec):
    """Bytes of a file before it exists, by part."""

    total_mb: float
    parts_mb: Mapping[str, float]


class ExpectedQuality(Spec):
    """The student's accuracy before it is trained, as a share of the teacher's: median, interval, how it was made."""

    median: float
    low: float
    high: float
    confidence: float
    method: str


class Candidate(Spec):
    """One student considered: its cost, what it is expected to be worth, and the budget lines it cannot meet.

    `scheme` is how it is stored where that differs from the profile. In a fleet, `size` is that of the largest file,
    `predictions` are those of the first device and `others` those of the rest, by target; a line that is another
    device's is named `target.line` in `violations` and `uncertain`.
    """

    config: Mapping[str, JsonValue]
    scheme: QuantScheme | None = None
    parameters: int
    macs: int
    size: SizeEstimate
    work: Mapping[str, JsonValue] = Field(default={}, description="a `Workload` that `edgedistill.predict` takes")
    predictions: tuple[Prediction, ...]
    others: Mapping[str, tuple[Prediction, ...]] = {}
    quality: ExpectedQuality | None = None
    violations: tuple[str, ...]
    uncertain: tuple[str, ...] = Field(default=(), description="lines that hold with less than the wanted confidence")
    teacher_ratio: float | None = Field(default=None, description="teacher by student parameters; None: unknown")

    @property
    def feasible(self) -> bool:
        """True when no budget line is violated."""
        return not self.violations

    @property
    def sure(self) -> bool:
        """True when every predicted line of the budget holds with the wanted confidence."""
        return not self.violations and not self.uncertain


class FrontPoint(Spec):
    """One student that no other beats in everything: size, latency, memory, energy and expected quality.

    None: not predicted. Figures are medians; in a fleet, those of the device that needs most.
    """

    student: str
    size_mb: float
    latency_p95_ms: float | None
    peak_memory_mb: float
    energy_mj: float | None
    expected_quality: float
    meets: Literal["sure", "possible", "no"]
    chosen: bool = False


class SearchCounts(Spec):
    """What became of every combination of the space."""

    combinations: int
    invalid: int = Field(description="no student of the family, or one that scheme and formats cannot store")
    evaluated: int = Field(description="costs and expected quality computed")
    excluded: int = Field(description="cannot meet the budget, by a bound: a cheaper one cannot either")
    feasible: int
    sure: int


class Effort(Spec):
    """What training takes on one machine; seconds and MB, as median and interval."""

    machine: str
    seconds: float
    seconds_low: float
    seconds_high: float
    peak_memory_mb: float
    method: str


class PlannedStage(Spec):
    """A stage of the build, with the exact values that drive it and why it is there."""

    name: str
    spec: Mapping[str, Any]
    why: str


class Assistant(Spec):
    """A student between teacher and student, which learns first and then teaches."""

    config: Mapping[str, JsonValue]
    parameters: int


class Plan(Spec):
    """Everything `build` will do. Printable, JSON, and the same for the same input.

    `profile` is the profile with the choice put into it: scheme and vocabulary are those of the chosen student.
    """

    target: Target
    fleet: tuple[Target, ...] = Field(default=(), description="further devices, whose budgets must hold as well")
    profile: Profile
    budget: Budget
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    search: SearchCounts | None = None
    front: tuple[FrontPoint, ...] = ()
    ties: tuple[str, ...] = Field(default=(), description="students too near in predicted latency to be ranked")
    assistants: tuple[Assistant, ...] = ()
    stages: tuple[PlannedStage, ...]
    formats: tuple[str, ...]
    unmeasured: tuple[str, ...]
    notes: tuple[str, ...]
    efforts: tuple[Effort, ...] = Field(default=(), description="of training; depends on the machine that plans")


class StageKey(Spec):
    """A stage that a build would ask the store for, and whether it is there."""

    name: str
    key: str
    done: bool


class PlanReport(Spec):
    """What `edgedistill plan --json` writes. `teacher`: None where it is not on this machine."""

    schema_version: Literal[1] = 1
    plan: Plan
    teacher: str | None
    stages: tuple[StageKey, ...]
    why: Mapping[str, tuple[str, ...]] | None = Field(default=None, description="with --why: by stage, what differs")
