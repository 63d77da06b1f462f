"""Language models on a device known by its specifications alone: one small ridge regression for each phase.

    log seconds for 10^9 parameters = kind of kernel on the unit - slope * log(rate) + what the chip lacks

Rates: bandwidth for decode; for prefill the peak of all cores (CPU), bandwidth (GPU, whose rates are not stated), TOPS
(NPU). Lacking: matrix instructions on int8 (prefill on a CPU), and what Google's Tensor chips lose in decode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edgedistill.predict.calibrate.crossval import HeldOut
from edgedistill.predict.calibrate.samples import Floats
from edgedistill.predict.devices import of_name
from edgedistill.predict.llm_features import quant_of, spec_effect, spec_kernel
from edgedistill.predict.llm_spec import repacked, spec_facts, spec_log_s

RIDGE = {"unit": 0.1, "kernel": 0.3, "pace": 1.0, "lacks": 0.3}
SPREAD = 0.3  # log error from which a group counts less
ROUNDS = 20
Row = Mapping[str, str]


class Group(NamedTuple):
    """One device, unit and kind of kernel: the median of its rows."""

    unit: str
    kernel: str
    device: str
    log_s: float
    facts: Mapping[str, float]


def groups(rows: Sequence[Row], phase: str, cost: Callable[[Row], float], effects: Mapping[str, float]) -> list[Group]:
    """The rows, grouped; a device without the rate of its unit tells nothing.

    Builds that do without matrix instructions as well (`repacked`) are groups of their own.
    """
    found: dict[tuple[str, str, str, float], list[float]] = {}
    for row in rows:
        quant, device = quant_of(row["quant"]), of_name(row["device"])
        kernel = spec_kernel(row["runtime"], quant, row["unit"], phase)
        value = cost(row) - spec_effect(effects, row["unit"], kernel, quant, phase)
        prompt = phase == "prefill" and row["unit"] == "cpu" and kernel == "llama"
        packed = repacked(device, row["runtime"], quant) if prompt else 0.0
        found.setdefault((row["unit"], kernel, row["device"], packed), []).append(value)
    known = []
    for (unit, kernel, name, packed), values in sorted(found.items()):
        facts = spec_facts(of_name(name), unit, phase, packed=packed)
        if "pace" in facts:
            known.append(Group(unit, kernel, name, float(np.median(values)), facts))
    return known


def fit_spec(among: Sequence[Group]) -> dict[str, float]:
    """Coefficients by name; `mean:unit` is the pace that a device without one is given."""
    units = sorted({one.unit for one in among})
    means = {unit: float(np.mean([one.facts["pace"] for one in among if one.unit == unit])) for unit in units}
    names = [
        "one",
        *(f"unit:{unit}" for unit in units),
        *sorted({f"{one.unit}|{one.kernel}" for one in among}),
        *(f"pace:{unit}" for unit in units),
        *sorted({name for one in among for name in one.facts if name != "pace"}),
    ]
    expected = np.array([-1.0 if name.startswith("pace:") else 0.0 for name in names])
    ridge = np.array([_ridge(name) for name in names])
    matrix = np.array([[_column(name, one, means) for name in names] for one in among])
    wanted, solved = np.array([one.log_s for one in among]), expected
    for _ in range(ROUNDS):
        robust = 1 / np.sqrt(1 + ((wanted - matrix @ solved) / SPREAD) ** 2)
        normal = (robust[:, None] * matrix).T @ matrix + np.diag(ridge)
        solved = np.linalg.solve(normal, matrix.T @ (robust * wanted) + ridge * expected)
    found = {name: round(float(value), 4) for name, value in zip(names, solved, strict=True)}
    for name in found:  # what physics forbids is noise: a faster memory never slows, a missing instruction never helps
        if name.startswith(("pace:", "lacks:")):
            found[name] = min(found[name], 0.0) if name.startswith("pace:") else max(found[name], 0.0)
    paces = {unit: [one.facts["pace"] for one in among if one.unit == unit] for unit in units}
    ends = {f"{end.__name__}:{unit}": round(end(values), 4) for unit, values in paces.items() for end in (min, max)}
    return {**found, **{f"mean:{unit}": round(value, 4) for unit, value in means.items()}, **ends}


def spec_held_out(among: Sequence[Group]) -> HeldOut:
    """log(measured / predicted) tokens per second with each chip left out in turn."""
    errors, keys = [], []
    for soc in sorted({of_name(one.device).soc for one in among}):
        rest = [one for one in among if of_name(one.device).soc != soc]
        found = fit_spec(rest)
        for one in among:
            if of_name(one.device).soc == soc:
                errors.append(spec_log_s(found, one.unit, one.kernel, one.facts) - one.log_s)
                keys.append(soc)
    error: Floats = np.array(errors)
    return HeldOut(error, tuple(keys), np.ones(len(error), dtype=bool))


def _ridge(name: str) -> float:
    if name == "one":
        return 1e-6
    return RIDGE[name.split(":")[0] if ":" in name else "kernel"]


def _column(name: str, one: Group, means: Mapping[str, float]) -> float:
    if name == "one":
        return 1.0
    if name == f"pace:{one.unit}":
        return one.facts["pace"] - means[one.unit]
    if name.startswith("lacks:"):
        return one.facts.get(name, 0.0)
    return float(name in (f"unit:{one.unit}", f"{one.unit}|{one.kernel}"))
