"""Frozen values that describe a build: what is wanted (target, profile), what was planned, what was seen.

This floor imports no numpy and no torch, so that `plan`, `targets` and `--help` answer at once.
"""

from edgedistill.specs.base import Spec
from edgedistill.specs.device import (
    Conditions,
    Energy,
    Fingerprint,
    Launch,
    Outputs,
    Placement,
    Summary,
    Sustained,
)
from edgedistill.specs.plan import Candidate, Plan, PlannedStage, Prediction, SizeEstimate
from edgedistill.specs.profile import (
    DataSpec,
    DistilSpec,
    ExportSpec,
    FitSpec,
    LossTerm,
    Profile,
    QualityFloor,
    StudentSpec,
    TeacherSource,
    TeacherSpec,
)
from edgedistill.specs.progress import Progress, Silent
from edgedistill.specs.quant import PerChannel, PerGroup, PerTensor, QuantScheme, WeightGrid
from edgedistill.specs.results import (
    Artifact,
    Audit,
    Check,
    GateResult,
    LedgerRow,
    Manifest,
    Measurement,
    Parity,
    Provenance,
    Quality,
    Verdict,
)
from edgedistill.specs.target import Budget, ComputeUnit, Target

__all__ = [
    "Artifact",
    "Audit",
    "Budget",
    "Candidate",
    "Check",
    "ComputeUnit",
    "Conditions",
    "DataSpec",
    "DistilSpec",
    "Energy",
    "ExportSpec",
    "Fingerprint",
    "FitSpec",
    "GateResult",
    "Launch",
    "LedgerRow",
    "LossTerm",
    "Manifest",
    "Measurement",
    "Outputs",
    "Parity",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Placement",
    "Plan",
    "PlannedStage",
    "Prediction",
    "Profile",
    "Progress",
    "Provenance",
    "Quality",
    "QualityFloor",
    "QuantScheme",
    "Silent",
    "SizeEstimate",
    "Spec",
    "StudentSpec",
    "Summary",
    "Sustained",
    "Target",
    "TeacherSource",
    "TeacherSpec",
    "Verdict",
    "WeightGrid",
]
