"""Predictions of a device rescaled by what was measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from edgedistill.plan.predict import Figures
from edgedistill.predict import Calibration
from edgedistill.specs import Prediction

STUDENT = "student "  # what the name of a class of the planner's own lines begins with
DEVICE = "litert cpu float"  # the class of edgedistill.predict that a student's latency is made from
NOISE = 0.12  # of ln(measured / predicted) beyond the anchors' own spread: another student than those measured
FEWEST = 3  # anchors from which an interval may become narrower than the prediction's own
Z80 = 1.2815515655446004


def calibrated(lines: Sequence[Prediction], calibration: Calibration | None) -> tuple[Prediction, ...]:
    """The lines times their factors; energy follows latency, as it is power times time.

    With three anchors or more the interval is that of the anchors, where it is narrower.
    """
    if calibration is None:
        return tuple(lines)
    return tuple(_line(line, calibration) for line in lines)


def calibrated_figures(lines: Sequence[Figures], calibration: Calibration | None) -> Sequence[Figures]:
    """`calibrated` of lines without words; their terms stay as they are."""
    if calibration is None:
        return lines
    return [_figures(line, calibration) for line in lines]


def _figures(line: Figures, calibration: Calibration) -> Figures:
    name = _class(line.quantity, calibration)
    if name is None:
        return line
    median, low, high = _ends(line, name, calibration)
    return line._replace(median=median, low=low, high=high)


def _line(line: Prediction, calibration: Calibration) -> Prediction:
    name = _class(line.quantity, calibration)
    if name is None:
        return line
    factor, count = calibration.factors[name], calibration.anchors[name]
    median, low, high = _ends(line, name, calibration)
    told = f"x{factor:.2f} by {count} own measurements ({calibration.runtime_build})"
    return line.model_copy(
        update={
            "median": median,
            "low": low,
            "high": high,
            "method": f"{line.method}; {told}",
            "terms": {key: factor * value if key.endswith("_ms") or line.unit == "MB" else value
                      for key, value in line.terms.items()},
        }
    )  # fmt: skip


def _class(quantity: str, calibration: Calibration) -> str | None:
    """The class whose factor a line takes; None: nothing was measured that says anything about it."""
    names = [STUDENT + quantity]
    if quantity in ("latency_p95_ms", "energy_mj"):
        names += [STUDENT + "latency_p95_ms", DEVICE]
    return next((name for name in names if name in calibration.factors), None)


def _ends(line: Prediction | Figures, name: str, calibration: Calibration) -> tuple[float, float, float]:
    """Median and interval with the factor of a class."""
    factor = calibration.factors[name]
    median, low, high = (factor * value for value in (line.median, line.low, line.high))
    # power is not better known because time is
    if calibration.anchors[name] >= FEWEST and line.quantity != "energy_mj":
        spread = exp(Z80 * (calibration.spread[name] ** 2 + NOISE**2) ** 0.5)
        low, high = max(low, median / spread), min(high, median * spread)
    return median, low, high
