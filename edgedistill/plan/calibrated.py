"""Predictions of a device rescaled by what was measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

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


def _line(line: Prediction, calibration: Calibration) -> Prediction:
    names = [STUDENT + line.quantity]
    if line.quantity in ("latency_p95_ms", "energy_mj"):
        names += [STUDENT + "latency_p95_ms", DEVICE]
    name = next((name for name in names if name in calibration.factors), None)
    if name is None:
        return line
    factor, count = calibration.factors[name], calibration.anchors[name]
    median, low, high = (factor * value for value in (line.median, line.low, line.high))
    if count >= FEWEST and line.quantity != "energy_mj":  # power is not better known because time is
        spread = exp(Z80 * (calibration.spread[name] ** 2 + NOISE**2) ** 0.5)
        low, high = max(low, median / spread), min(high, median * spread)
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
