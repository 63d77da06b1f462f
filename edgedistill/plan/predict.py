"""The lines of a budget of a student on a target; the figures are those of `edgedistill.predict`, plan or call."""

from __future__ import annotations

from edgedistill.predict import Calibration, resolve
from edgedistill.predict import students as known
from edgedistill.predict.student_lines import lines
from edgedistill.predict.students import Figures, Predictor
from edgedistill.predict.students import StudentWork as Workload
from edgedistill.specs import Prediction, Target

__all__ = ["Figures", "Predictor", "Workload", "predict", "predictor"]


def predict(target: Target, workload: Workload, calibration: Calibration | None = None) -> tuple[Prediction, ...]:
    """The lines that the facts of `target` allow to predict, named as `Budget` names them.

    Latency in ms needs the CPU's `one_core_fp32_gflops`; energy in mJ needs latency and a battery, as only whole-phone
    power is published. A line whose facts are missing is left out, never guessed. `edgedistill.predict` says the same
    of the chosen student: `edgedistill.predict(target, plan.chosen, "energy_mj")`.
    """
    found = lines(resolve(target), workload, calibration, threads=target.threads)
    return tuple(Prediction(**{name: getattr(line, name) for name in Prediction.model_fields}) for line in found)


def predictor(target: Target, calibration: Calibration | None = None) -> Predictor:
    """Latency, memory and energy without words, for many workloads of one device."""
    return known.predictor(resolve(target), calibration)
