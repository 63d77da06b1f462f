"""The budgets of the further devices that one student is built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgedistill.gate import GateFacts, gate
from edgedistill.specs import Budget, Check, Manifest, Prediction, QualityFloor, Target


def fleet_checks(
    fleet: Sequence[Target], limits: Budget, facts: GateFacts, predictions: Mapping[str, Sequence[Prediction]]
) -> tuple[Check, ...]:
    """The budget of every further device, line by line, each named after its device; the size is one for all.

    Nothing was measured on them here, so their lines stay open, with what was predicted.
    """
    found: list[Check] = []
    for one in fleet:
        budget = one.budget.tightened(limits).model_copy(update={"size_mb": None})
        theirs = facts.model_copy(update={"host": None, "predictions": tuple(predictions.get(one.name, ()))})
        lines = {*budget.limits(), *budget.text_limits()}
        checks = gate(one, budget, QualityFloor(), theirs).checks
        found += [
            check.model_copy(update={"name": f"{one.name}.{check.name}"}) for check in checks if check.name in lines
        ]
    return tuple(found)


def stored_fleet_checks(manifest: Manifest, limits: Budget, facts: GateFacts, where: str) -> tuple[Check, ...]:
    """As `fleet_checks`, of the devices that a bundle's manifest names.

    Raises:
        SpecError: a device or a prediction in it cannot be read.
    """
    told, chosen = manifest.plan.get("fleet"), manifest.plan.get("chosen")
    others = chosen.get("others") if isinstance(chosen, dict) else None
    predictions = others.items() if isinstance(others, dict) else ()
    return fleet_checks(
        [Target.decode(one, f"{where}: plan.fleet") for one in told] if isinstance(told, list) else (),
        limits,
        facts,
        {
            name: [Prediction.decode(one, f"{where}: plan.chosen.others") for one in lines]
            for name, lines in predictions
            if isinstance(lines, list)
        },
    )
