"""What a device's own measurements change: the speed of a class, and how its terms stand to each other.

    log(ms) = change + log of the sum over terms of predicted ms x exp(change of the term)

The changes with the largest posterior: normal around none, by `TRUST` and `TERM_TRUST` (the variance of an anchor over
that of a change), under a pseudo-Huber loss, so that one odd anchor does not decide. So few anchors change little but
the speed, many also what a layer or a byte costs. Gauss-Newton; plain Python, as a plan imports no numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log, sqrt

TRUST, TERM_TRUST = 0.15, 0.5
STUDENT_TRUST = 0.05  # of a student's terms, as students are graphs of one kind (bench/results/own_anchors.md)
SPREAD = 0.3  # log error from which an anchor counts less
ROUNDS = 15


def update(
    anchors: Sequence[tuple[Mapping[str, float], float]], term_trust: float = TERM_TRUST
) -> tuple[float, dict[str, float]]:
    """The change of the speed and of each term, as logs, from pairs of predicted terms (ms) and measured ms."""
    names = sorted({name for terms, _ in anchors for name in terms})
    change = [0.0] * (1 + len(names))
    for _ in range(ROUNDS):
        normal = [[0.0] * len(change) for _ in change]
        right = [0.0] * len(change)
        for terms, measured in anchors:
            parts = [terms.get(name, 0.0) * exp(own) for name, own in zip(names, change[1:], strict=True)]
            total = sum(parts)
            residual = log(measured / total) - change[0]
            weight = 1 / sqrt(1 + (residual / SPREAD) ** 2)
            slopes = [1.0, *(part / total for part in parts)]
            for i, slope in enumerate(slopes):
                right[i] += weight * slope * residual
                for j, other in enumerate(slopes):
                    normal[i][j] += weight * slope * other
        for i, now in enumerate(change):
            trust = term_trust if i else TRUST
            normal[i][i] += trust
            right[i] -= trust * now
        step = _solve(normal, right)
        change = [now + max(-1.0, min(1.0, one)) for now, one in zip(change, step, strict=True)]
    return change[0], dict(zip(names, change[1:], strict=True))


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Cholesky: the matrix is symmetric and, by the ridges on its diagonal, positive definite."""
    size = len(right)
    lower = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - sum(lower[i][k] * lower[j][k] for k in range(j))
            lower[i][j] = sqrt(rest) if i == j else rest / lower[j][j]
    solved: list[float] = []
    for i in range(size):
        solved.append((right[i] - sum(lower[i][k] * solved[k] for k in range(i))) / lower[i][i])
    for i in reversed(range(size)):
        solved[i] = (solved[i] - sum(lower[k][i] * solved[k] for k in range(i + 1, size))) / lower[i][i]
    return solved
