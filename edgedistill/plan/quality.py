"""How good a student will be before it is trained: a small, stated model, corrected by the builds that were finished.

The share of the teacher's accuracy that is lost, its gap, falls as a power of the student's compute and of its size
against the teacher's: `ln(gap) = c0 + c1 ln(COMPUTE / macs) + c2 ln(ratio / RATIO)`. The coefficients begin as a normal
prior and each finished build is one observation of Bayes' linear regression (Bishop 2006, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt
from typing import Annotated, NamedTuple

from pydantic import Field

from edgedistill.specs import ExpectedQuality, Spec

# The default build: 27.3 million multiply-accumulates, 1/31.2 of its teacher's parameters.
MACS, RATIO, TEACHER = 27.3e6, 31.2, 22_713_216
# From two students of the default recipe on BANKING77: 27.3 million and 1/31.2: a gap of 0.20 % (three seeds); 3.7
# million and 1/105: 1.67 % (two seeds; bench/results/quality.md). Two points cannot tell compute from size, so both
# slopes are equal. Another task shifts c0 by a factor of about e.
PRIOR = (log(0.002), 0.66, 0.66)
DEVIATION = (1.0, 0.3, 0.3)
NOISE = 0.5  # of ln(gap): what seeds and recipes change
# int4 for every weight, trained on: 0.2 points of 84 per group of 32, 0.4 per channel (bench/results/quant_rules.md).
INT4_LOSS = {True: 0.0025, False: 0.005}
Z80 = 1.2815515655446004
LEAST = 1e-4
Matrix = tuple[tuple[float, ...], ...]


class FinishedBuild(Spec):
    """What a finished build teaches the next plan. It holds no path and no time."""

    request: str = Field(description="what was asked, as a hash: data, teacher, recipe; not the student")
    family: str
    parameters: Annotated[int, Field(ge=1)]
    macs: Annotated[int, Field(ge=1)]
    int4_share: Annotated[float, Field(ge=0, le=1)] = Field(description="of the parameters, those stored in 4 bits")
    teacher_parameters: Annotated[int, Field(ge=1)]
    assistants: Annotated[int, Field(ge=0)]
    correct: Annotated[int, Field(ge=0)]
    teacher_correct: Annotated[int, Field(ge=1)]
    rows: Annotated[int, Field(ge=1)]

    @property
    def gap(self) -> float:
        """Share of the teacher's right answers that is lost; below 0 where the student has more."""
        return 1.0 - self.correct / self.teacher_correct

    @property
    def ratio(self) -> float:
        """Teacher by student parameters."""
        return self.teacher_parameters / self.parameters

    @property
    def gap_error(self) -> float:
        """Standard error of the gap from the number of rows; half of two independent ones', as the rows are shared."""
        share = self.teacher_correct / self.rows
        return max(0.5 * sqrt(2 * share * (1 - share) / self.rows), 0.5 / self.rows)


class QualityModel(NamedTuple):
    """Coefficients of ln(gap) and their covariance; `builds`: how many finished ones were learned from."""

    mean: tuple[float, float, float]
    covariance: Matrix
    builds: int
    teacher: int

    def gap(self, macs: float, parameters: float) -> float:
        """The median share that is lost in 8 bits or float."""
        c0, c1, c2 = self.mean
        return min(exp(c0 + c1 * log(MACS / macs) + c2 * log(self.teacher / parameters / RATIO)), 1.0)

    def expect(self, macs: float, parameters: float, int4_loss: float) -> ExpectedQuality:
        """Median and 80% interval of the share of the teacher's accuracy; `int4_loss` is what 4 bits cost on top."""
        x = _features(macs, self.teacher / parameters)
        spread = sum(x[i] * x[j] * self.covariance[i][j] for i in range(3) for j in range(3))
        factor = exp(Z80 * sqrt(spread + NOISE**2))
        gap = self.gap(macs, parameters)
        learned = f"{self.builds} finished builds" if self.builds else "no finished build here"
        return ExpectedQuality(
            median=max(1.0 - gap - int4_loss, 0.0),
            low=max(1.0 - gap * factor - 2 * int4_loss, 0.0),
            high=1.0 - gap / factor,
            confidence=0.8,
            method=f"share of the teacher's accuracy by compute and size ratio; prior of the default build, {learned}",
        )


def quality_model(teacher_parameters: int | None, builds: Sequence[FinishedBuild]) -> QualityModel:
    """The prior, corrected by the builds; an unknown teacher is taken to be as large as the default one."""
    weight = [[1 / DEVIATION[i] ** 2 if i == j else 0.0 for j in range(3)] for i in range(3)]
    right = [PRIOR[i] / DEVIATION[i] ** 2 for i in range(3)]
    for build in builds:
        x = _features(build.macs, build.ratio)
        lost = max(build.gap - INT4_LOSS[True] * build.int4_share, build.gap_error, LEAST)
        certainty = 1 / (NOISE**2 + (build.gap_error / lost) ** 2)
        for i in range(3):
            right[i] += certainty * x[i] * log(lost)
            for j in range(3):
                weight[i][j] += certainty * x[i] * x[j]
    covariance = _inverse(weight)
    mean = tuple(sum(covariance[i][j] * right[j] for j in range(3)) for i in range(3))
    # more compute or parameters never make a student worse: a slope that noise turned round is none
    slopes = tuple(max(value, 0.0) for value in mean[1:])
    return QualityModel((mean[0], slopes[0], slopes[1]), covariance, len(builds), teacher_parameters or TEACHER)


def _features(macs: float, ratio: float) -> tuple[float, float, float]:
    return 1.0, log(MACS / macs), log(ratio / RATIO)


def _inverse(matrix: Sequence[Sequence[float]]) -> Matrix:
    """Of a symmetric positive definite matrix, by Gauss and Jordan."""
    size = len(matrix)
    rows = [[*row, *(1.0 if i == j else 0.0 for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for other in range(size):
            if other != i:
                factor = rows[other][i]
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[i], strict=True)]
    return tuple(tuple(row[size:]) for row in rows)
