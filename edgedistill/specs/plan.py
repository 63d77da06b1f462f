"""The plan: which student, which stages, what it will cost, and why. Made before anything slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from edgedistill.specs.base import Spec
from edgedistill.specs.profile import Profile
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


class SizeEstimate(Spec):
    """Bytes of a file before it exists, by part."""

    total_mb: float
    parts_mb: Mapping[str, float]


class Candidate(Spec):
    """One student considered: its cost, and the budget lines it cannot meet."""

    config: Mapping[str, int | float]
    parameters: int
    macs: int
    size: SizeEstimate
    predictions: tuple[Prediction, ...]
    violations: tuple[str, ...]
    teacher_ratio: float | None = Field(default=None, description="teacher by student parameters; None: unknown")

    @property
    def feasible(self) -> bool:
        """True when no budget line is violated."""
        return not self.violations


class PlannedStage(Spec):
    """A stage of the build, with the exact values that drive it and why it is there."""

    name: str
    spec: Mapping[str, Any]
    why: str


class Plan(Spec):
    """Everything `build` will do. Printable, JSON, and the same for the same input."""

    target: Target
    profile: Profile
    budget: Budget
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    stages: tuple[PlannedStage, ...]
    formats: tuple[str, ...]
    unmeasured: tuple[str, ...]
    notes: tuple[str, ...]
