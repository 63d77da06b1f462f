"""The latency part of the coefficients: for each class its fit, what spec sheets say, model effects and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from edgedistill.predict import tables
from edgedistill.predict.calibrate import baselines, crossval, intervals
from edgedistill.predict.calibrate.chips import unseen_devices
from edgedistill.predict.calibrate.crossval import HeldOut
from edgedistill.predict.calibrate.fitted import fit_class
from edgedistill.predict.calibrate.intervals import few
from edgedistill.predict.calibrate.judged import Judged, together
from edgedistill.predict.calibrate.samples import Floats, Samples, all_samples
from edgedistill.predict.classes import LAYERS_TOLD

RATES = ("compute", "bandwidth")  # facts whose range is shipped, so that a device beyond it is told
ENOUGH = 40  # held-out rows from which imputed features get an interval of their own
LEVELS = {
    "scaled": "known model, chip has not run it",
    "spec only": "new chip, new model, 0 anchors",
    "spec only, known model": "new chip, known model, 0 anchors",
    "calibrated": "new chip, new model, 3 anchors",
    "calibrated, known model": "new chip, known model, 3 anchors",
    "calibrated by 5": "new chip, new model, 5 anchors",
    "calibrated by 5, known model": "new chip, known model, 5 anchors",
}


def latency(impute: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Coefficients of each class, and the cross-validated errors as rows of a table."""
    samples = all_samples(impute)
    held = {name: held_out(data) for name, data in samples.items()}
    found, figures = {}, []
    pools: dict[tuple[str, str], list[Judged]] = {}
    for name, data in samples.items():
        same_unit = [other for other in samples if other != name and samples[other].unit == data.unit]
        kin = [held[other] for other in same_unit if data.one.compiled and _kind(other) == _kind(name)]
        others = [held[other] for other in same_unit]
        found[name] = one_class(data, held[name], others, kin)
        rows = []
        for split, errors in held[name].items():
            row = judge(split, errors, others, kin)
            rows.append(row.figure(name, split))
            pools.setdefault((_kind(name), split), []).append(row)
        rows[0]["simpler"] = baselines.of_class(data)
        figures += rows
    for (kind, split), parts in sorted(pools.items(), key=lambda one: one[0][0]):
        if len(parts) > 1:
            figures.append(together(parts).figure(kind, split))
    return {"classes": found, "exact": exact_interval()}, figures


def _kind(name: str) -> str:
    """The runtime and unit of a class, of all its precisions."""
    runtime, unit = name.split()[:2]
    return f"{runtime} {unit}, all precisions{LAYERS_TOLD if name.endswith(LAYERS_TOLD) else ''}"


def held_out(data: Samples) -> dict[str, HeldOut]:
    """Every split of a class that has enough models and chips for it, by name."""
    held = {"new model": crossval.unseen_models(data, False), "new family": crossval.unseen_models(data, True)}
    if len(set(data.soc)) < 2:
        return held
    held["known model, chip has not run it"] = crossval.unseen_cells(data)
    for (kind, anchors), errors in sorted(unseen_devices(data).items(), key=lambda one: one[0][1]):
        if len(errors.error) >= 10:
            held[f"new chip, {kind}, {anchors} anchors"] = errors
    return held


def one_class(
    data: Samples,
    held: Mapping[str, HeldOut],
    others: Sequence[Mapping[str, HeldOut]],
    kin: Sequence[Mapping[str, HeldOut]] = (),
) -> dict[str, Any]:
    """Everything a prediction of the class needs."""
    every = np.ones(len(data.log_ms), dtype=bool)
    fitted = fit_class(data, every)
    found, told = fitted.fit, fitted.told
    effects = crossval.model_effects(data, every, fitted)
    positive = [data.terms[data.terms[:, k] > 0, k] for k in range(data.terms.shape[1])]
    return {
        "terms": list(data.one.terms),
        "shape": _rounded(found.shape),
        "powers": found.powers.shipped() if found.powers else {},
        "groups": {
            name: {
                "speed": round(float(found.speed[g]), 4),
                "deviation": _rounded(found.deviation[g]),
                "rows": int((data.group == g).sum()),
            }
            for g, name in enumerate(data.groups)
        },
        "slopes": {
            **{name: round(value, 4) for name, value in told.speed.items()},
            **{f"mean:{name}": round(value, 4) for name, value in told.mean.items()},
        },
        "facts": {name: _ends([one[name] for one in data.facts if name in one]) for name in RATES if name in told.mean},
        "deviations": {name: _rounded(values) for name, values in told.deviation.items()},
        "effects": {name: round(value, 4) for name, value in effects.items()},
        "range": [[round(float(p.min()), 6), round(float(p.max()), 6)] if p.size else [0.0, 0.0] for p in positive],
        "intervals": level_intervals(held, others, kin),
    }


def level_intervals(
    held: Mapping[str, HeldOut],
    others: Sequence[Mapping[str, HeldOut]],
    kin: Sequence[Mapping[str, HeldOut]] = (),
) -> dict[str, dict[str, list[float]]]:
    """By level: low and high as log factors on the median, for traced and for told features."""
    models = [held["new model"], held["new family"]]  # a user's model may be of a known family or not
    together = HeldOut(
        np.concatenate([one.error for one in models]),
        sum((one.key for one in models), ()),
        np.concatenate([one.traced for one in models]),
    )
    found = {"fitted": _pair(together, None)}
    for level, split in LEVELS.items():
        if split in held:
            given = intervals.by_split(held, others, split) if few(held[split]) else None
            if given is None and (same := _kin_of(split, kin)) and len(set(held[split].key)) <= intervals.FEW_CHIPS:
                given = intervals.joint(held[split], same)
            found[level] = _pair(held[split], given)
    return found


def _pair(held: HeldOut, given: tuple[float, float] | None) -> dict[str, list[float]]:
    keys = np.array(held.key)
    every = given or intervals.interval(held.error, keys)
    found = {}
    for name, mask in (("told", ~held.traced), ("traced", held.traced)):
        own = intervals.interval(held.error[mask], keys[mask]) if mask.sum() >= ENOUGH and given is None else every
        found[name] = intervals.rounded(own)
    return found


def exact_interval() -> list[float]:
    """How far a row repeats: the same model, precision, runtime and device in two releases of Qualcomm AI Hub."""
    key = ("model", "precision", "runtime", "device", "unit")
    rows = sorted((row for row in tables.rows("latency.csv") if row["release"]), key=lambda row: [row[k] for k in key])
    apart = []
    for _, same in groupby(rows, key=lambda row: [row[k] for k in key]):
        values = [float(row["ms"]) for row in same]
        apart += [float(np.log(value / values[0])) for value in values[1:]]
    if len(apart) < 10:  # one release only: 90 % of repeats lie within x1.25
        return [-0.15, 0.15]
    both = np.array(apart + [-value for value in apart])
    return intervals.rounded(intervals.interval(both, map(str, range(len(both)))))


def judge(
    split: str,
    held: HeldOut,
    others: Sequence[Mapping[str, HeldOut]] = (),
    kin: Sequence[Mapping[str, HeldOut]] = (),
) -> Judged:
    """Errors and what intervals hold of them, each made as it ships but without the key to hold."""
    found = intervals.judged(held, _kin_of(split, kin))
    if few(held):
        ends = intervals.pooled(one[split] for one in others if split in one and not few(one[split]))
        found = found if ends is None else intervals.judged_few(held, ends)
    return Judged(held, None if found is None else found[0], None if found is None else found[1], few(held))


def figure(name: str, split: str, held: HeldOut) -> dict[str, Any]:
    """A row of the table of cross-validated errors, of a class that no other has a say in."""
    return judge(split, held).figure(name, split)


def _kin_of(split: str, kin: Sequence[Mapping[str, HeldOut]]) -> list[HeldOut]:
    """The other precisions' errors where a new chip is known by its specifications alone, else none."""
    return [one[split] for one in kin if split in one] if split.endswith(" 0 anchors") else []


def _ends(values: Sequence[float]) -> list[float]:
    return [round(min(values), 4), round(max(values), 4)]


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 4) for value in values]
