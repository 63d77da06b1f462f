"""The gate: what a build was allowed to cost and had to be worth, against what was seen. Pure; it measures nothing."""

from edgedistill.gate.budget import CostFacts, GateFacts, budget_lines, exit_error, gate, pair
from edgedistill.gate.costs import p95_bounds
from edgedistill.gate.lines import accuracy_line, exact_line, latency_line, memory_line, speed_lines
from edgedistill.gate.placement import placement_lines
from edgedistill.gate.regression import Rule, decided, paired_interval, regression_lines, unpaired_interval
from edgedistill.gate.sides import check_comparable, compared, joined

__all__ = [
    "CostFacts",
    "GateFacts",
    "Rule",
    "accuracy_line",
    "budget_lines",
    "check_comparable",
    "compared",
    "decided",
    "exact_line",
    "exit_error",
    "gate",
    "joined",
    "latency_line",
    "memory_line",
    "p95_bounds",
    "pair",
    "paired_interval",
    "placement_lines",
    "regression_lines",
    "speed_lines",
    "unpaired_interval",
]
