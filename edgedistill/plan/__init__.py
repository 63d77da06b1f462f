"""(Target, Profile) to Plan: what is refused early, which student, which stages, and what it is predicted to cost.

Imports no torch and no numpy: a plan answers at once, and says no before anything slow.
"""

from edgedistill.plan.make import make_plan
from edgedistill.plan.predict import Workload, predict
from edgedistill.plan.quality import FinishedBuild
from edgedistill.plan.size import tflite_size

__all__ = ["FinishedBuild", "Workload", "make_plan", "predict", "tflite_size"]
