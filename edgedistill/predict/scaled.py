"""A model known by its measurements only: nothing describes its work, but other chips have run it."""

from __future__ import annotations

from math import exp
from statistics import median

from edgedistill.errors import SpecError
from edgedistill.predict import tables
from edgedistill.predict.classes import class_of, precision_of
from edgedistill.predict.devices import Device, of_name
from edgedistill.predict.rows import CONFIDENCE
from edgedistill.predict.specs import Forecast, Workload
from edgedistill.predict.speed import find_speed, unstated, without_facts


def by_rows(device: Device, work: Workload, name: str) -> Forecast:
    """The forecast by the rows of other chips, scaled by the speeds of both.

    Raises:
        SpecError: there is no row of the class.
    """
    found = tables.coefficients()["latency"]["classes"][name]
    mine, wanted = find_speed(device, work, name), precision_of(work.precision)
    ratios = []
    for row in tables.latency_rows(work.model or ""):
        same = precision_of(row["precision"]) == wanted and row["unit"] == work.unit and not row["other_layers"]
        if (
            same
            and class_of(
                row["runtime"], row["unit"], row["precision"], f"{row['chipset']} {of_name(row['device']).soc}"
            )
            == name
        ):
            theirs = work.model_copy(
                update={"runtime": row["runtime"], "threads": int(row["threads"]) if row["threads"].isdigit() else 1}
            )
            speed = find_speed(of_name(row["device"]), theirs, name)
            ratios.append(float(row["ms"]) * exp(mine.speed - speed.speed))
    if not ratios:
        raise SpecError(
            f"model {work.model!r} has no features and no row of class {name!r}. Describe it: gmacs, params_m, n_ops."
        )
    middle, spread = median(ratios), found["intervals"]
    ends = (spread.get("scaled" if mine.measured else "spec only, known model") or {"told": (-0.8, 0.8)})["told"]
    low, high = without_facts(mine, *ends)
    missing, taken = unstated(device, work, name, mine)
    return Forecast(
        quantity="latency_ms",
        unit="ms",
        median=middle,
        low=middle * exp(low * 1.2),
        high=middle * exp(high * 1.2),
        confidence=CONFIDENCE,
        method=f"scaled from another device: median of {len(ratios)} rows, by the speed of both chips",
        terms={"scaled_ms": middle},
        level="scaled from another device",
        device=device.name,
        flags=("no features of this model: one factor for all its work", *taken),
        missing=missing,
    )
