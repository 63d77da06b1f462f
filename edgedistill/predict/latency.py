"""Latency of one inference: an exact row if there is one, else terms of the class at the speed of the device."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import exp, log, sqrt
from typing import Any

from edgedistill.errors import SpecError
from edgedistill.predict import tables
from edgedistill.predict.classes import (
    CLASSES,
    LAYERS_TOLD,
    ROCKCHIP,
    class_of,
    family_of,
    precision_known,
    precision_of,
)
from edgedistill.predict.devices import Device
from edgedistill.predict.features import FAR, NO_SIZE, Features, describes, features, find_row
from edgedistill.predict.powers import bend, dearest_depthwise, outside
from edgedistill.predict.rows import CONFIDENCE, build_of, exact, exact_rows, wanted_builds
from edgedistill.predict.scaled import by_rows
from edgedistill.predict.specs import Calibration, Forecast, Level, Workload
from edgedistill.predict.speed import Z80, Speed, find_speed, unstated, without_facts

# What dynamic int8 (weights int8, activations made int8 at run time) gains on the multiply-accumulates of LiteRT's CPU
# runtime: 1.4 and 1.3 times on MobileNetV2, whose depthwise layers stay float; 2.7 times where all layers
# are linear, as this project's students on a server core (0.87 of what static int8 gains on Pixel 6 and S23).
DYNAMIC_GAIN = {True: 2.7, False: 1.35}
WIDER_OUTSIDE = 0.5  # of the log of what work outside the calibrated range adds to it, added to both ends
INT8_SHARE = 0.7  # of the peak of int8 dot products: the best of LiteRT's rows on a CPU reaches 0.66
OTHER_NPU = re.compile(
    r"mediatek|dimensity|helio|genio|\bmt\d{4}|exynos|kirin|unisoc|amlogic|bcm2|jetson|orin|edge ?tpu|\bi\.?mx|hailo"
)
OTHER_PRECISION = 1.5  # both ends, where a unit was measured in another precision only
ANCHORED, WELL_ANCHORED = 3, 5  # numbers of own measurements that intervals were cross-validated for
# Apple's NPU: EfficientFormer's paper (arXiv 2206.01191) has DeiT-S, a plain transformer, at 3.9 times what is told of
# it (11.8 ms on iPhone 12, recalled); all transformers of the rows were designed or rewritten for the unit.
PLAIN_ON_ANE = 4.0
WIDER_BORROWED = 1.15  # another build, thread count or phone with the same chip: both ends this much further


def latency(device: Device, work: Workload, calibration: Calibration | None = None) -> Forecast:
    """Median and 80% interval of one inference in ms.

    Raises:
        SpecError: for a runtime, unit and precision that nothing is known of, or a model that nothing describes.
    """
    if work.delegated < 1.0 and work.unit != "cpu":
        return _partly(device, work, calibration)
    rows = exact_rows(device, work) if precision_known(work.precision) and not describes(work) else []
    if rows and calibration is None:  # also where nothing but the row is known of such a unit
        return exact(device, rows)
    return _modelled(device, work, class_name(device, work), calibration)


def class_name(device: Device, work: Workload) -> str:
    """The class of a workload on a device.

    Raises:
        SpecError: if there is none.
    """
    device.refuse_absent(work.unit)
    precision = "fp32" if is_dynamic(work) else work.precision
    name = class_of(work.runtime, work.unit, precision, device.soc, device.npu_tops)
    if not name or not precision_known(work.precision):
        known = ", ".join(sorted(one for one in CLASSES if LAYERS_TOLD not in one))
        raise SpecError(
            f"no measurements of runtime {work.runtime!r} on the {work.unit} in {work.precision!r}. Known: {known};"
            " runtimes litert, qnn, onnx, coreml, rknn, ncnn, paddle_lite; precisions fp32, fp16, int8, w8a8, w8a16,"
            " dynamic_int8."
        )
    return name


def is_dynamic(work: Workload) -> bool:
    """Dynamic int8 on LiteRT's CPU runtime: predicted from float, as its kernels do only part of the work in int8."""
    return work.unit == "cpu" and precision_of(work.precision) == "dynamic_int8" and family_of(work.runtime) == "litert"


def same_precision(precision: str, name: str) -> bool:
    """Whether a class is of the precision that is asked for."""
    kind, has = precision_of(precision), name.split()[-1].replace("w8a8", "int8")
    return has == kind or (has, kind) == ("int8", "dynamic_int8")


def _modelled(device: Device, work: Workload, name: str, calibration: Calibration | None) -> Forecast:
    one = CLASSES[name]
    row = _any_row(work, name)
    inputs = features(work, one, tables.coefficients()["impute"], row)
    if inputs is None:
        return by_rows(device, work, name)
    fitted = f"{name}{LAYERS_TOLD}" if one.compiled and "layers" in inputs.imputed else name
    found = tables.coefficients()["latency"]["classes"][fitted]
    speed = find_speed(device, work, fitted)
    stored = find_row(work.model, one) if work.model and not describes(work) else None
    effect = found["effects"].get(stored["key"]) if stored is not None else None
    each = [exp(shape + own) for shape, own in zip(found["shape"], speed.deviation, strict=True)]
    inputs, regular = _depthwise(inputs, found, each)
    amounts = inputs.terms(found["terms"])
    factor = exp(speed.speed + (effect or 0.0)) * (calibration.factors.get(name, 1.0) if calibration else 1.0)
    factor *= bend(found, each, amounts)
    learnt = calibration.terms.get(name, {}) if calibration else {}
    terms = {
        term: factor * own * amount * learnt.get(term, 1.0)
        for term, own, amount in zip(found["terms"], each, amounts, strict=True)
    }
    flags = _flags(work, inputs, amounts, found["range"], found["terms"])
    least = _least_ms(device, work, inputs, name) * (calibration.factors.get(name, 1.0) if calibration else 1.0)
    flags += regular
    flags += _in_int8(work, inputs, terms, least)
    anchors = calibration.anchors[name] if calibration and name in calibration.factors else 0
    level, key = _level(speed, effect, anchors)
    low, high = _interval(found["intervals"], key, inputs)
    if anchors:
        before = _interval(found["intervals"], _level(speed, effect, 0)[1], inputs)
        low, high = _anchored(low, high, before, anchors, calibration.spread[name] if calibration else 0.0)
    low, high = without_facts(speed, low, high)
    more, told = _unlike(device, work, name, speed)
    widen, flags = outside(found, each, amounts) * WIDER_OUTSIDE + more, [*flags, *told]
    widen += WIDER_OUTSIDE if FAR in inputs.imputed else 0.0
    middle = sum(terms.values())
    missing, taken = unstated(device, work, fitted, speed)
    if name == "coreml ane float" and inputs.transformer and stored is None and not anchors:
        high += log(PLAIN_ON_ANE)
        flags.append("attention: the transformers measured on this unit were made for it, upper end widened")
    return Forecast(
        quantity="latency_ms",
        unit="ms",
        median=middle,
        low=middle * exp(low - widen),
        high=middle * exp(high + widen),
        confidence=CONFIDENCE,
        method=_method(name, level, speed, effect, calibration),
        terms=terms,
        level=level,
        device=device.name,
        flags=(*flags, *taken),
        missing=missing,
    )


def _depthwise(inputs: Features, found: Mapping[str, Any], each: Sequence[float]) -> tuple[Features, list[str]]:
    """The features with no more depthwise multiply-accumulates than forms of the class can tell; says so."""
    given = inputs.depthwise_gmacs
    kept = dearest_depthwise(
        found, each, lambda count: inputs._replace(depthwise_gmacs=count).terms(found["terms"]), given, inputs.gmacs
    )
    if kept == given:
        return inputs, []
    share = f"{kept / inputs.gmacs:.0%} of the multiply-accumulates"
    return inputs._replace(depthwise_gmacs=kept), [f"depthwise: more than any measured share, {share} taken as such"]


def _anchored(low: float, high: float, before: tuple[float, float], anchors: int, spread: float) -> tuple[float, float]:
    """Ends of an interval, log, by own measurements; `before` are those without them.

    Few narrow it half way. Measurements that lie further apart than models of the class do tell that something else
    differs between them, and the interval is as wide as they are.
    """
    if anchors < ANCHORED:
        low, high = (low + min(low, before[0])) / 2, (high + max(high, before[1])) / 2
    apart = Z80 * spread
    return (min(low, -apart), max(high, apart)) if apart > max(-before[0], before[1]) else (low, high)


def _in_int8(work: Workload, inputs: Features, terms: dict[str, float], least_ms: float) -> list[str]:
    """Changes the terms to what integers take of them; says so."""
    flags = []
    if least_ms > sum(terms.values()):
        terms["macs_ms"] += least_ms - sum(terms.values())
        flags.append(f"taken at {INT8_SHARE:.0%} of the peak of int8 dot products: no measured row is faster")
    if is_dynamic(work):
        gain = DYNAMIC_GAIN[inputs.transformer]
        terms["macs_ms"] /= gain
        terms["reuse_ms"] /= sqrt(gain)  # the root of multiply-accumulates and numbers moved
        flags.append(f"dynamic int8 taken as {gain:g} times float on the multiply-accumulates")
    return flags


def _unlike(device: Device, work: Workload, name: str, speed: Speed) -> tuple[float, list[str]]:
    """How much wider both ends are, log, as the case is unlike those that were measured; and what it is unlike in."""
    widen, flags = speed.beyond * WIDER_OUTSIDE + (log(WIDER_BORROWED) if speed.measured and speed.told else 0.0), []
    if is_dynamic(work):
        widen += 0.15
    elif not same_precision(work.precision, name):
        widen += log(OTHER_PRECISION)
        flags.append(f"{work.precision}: no measurements on this unit, taken as {name.split()[-1]}")
    vendor = name.split()[0].title()
    if {"Qualcomm": OTHER_NPU.search(device.soc), "Rockchip": not ROCKCHIP.search(device.soc)}.get(vendor):
        widen += log(OTHER_PRECISION)
        flags.append(f"no measurements of NPUs of this vendor, taken as {vendor}'s of as many TOPS, interval widened")
    if speed.beyond:
        flags.append("device: faster or slower than any that was measured, interval widened")
    return widen, flags


def _level(speed: Speed, effect: float | None, anchors: int) -> tuple[Level, str]:
    if anchors:
        key = "calibrated by 5" if anchors >= WELL_ANCHORED else "calibrated"
        return "calibrated", key if effect is None else f"{key}, known model"
    if not speed.measured:
        return (
            ("spec only", "spec only") if effect is None else ("scaled from another device", "spec only, known model")
        )
    return ("fitted", "fitted") if effect is None else ("scaled from another device", "scaled")


def _method(name: str, level: Level, speed: Speed, effect: float | None, calibration: Calibration | None) -> str:
    parts = [f"{level}: {name}"]
    if speed.told:
        parts.append(
            f"speed {speed.told}" if speed.measured else "speed from specifications, no row of this device or chip"
        )
    if effect is not None:
        parts.append(f"this model x{exp(effect):.2f} its terms where it was measured")
    if calibration is not None and name in calibration.factors:
        parts.append(
            f"x{calibration.factors[name]:.2f} by {calibration.anchors[name]} own measurements"
            f" ({calibration.runtime_build})"
        )
    return "; ".join(parts)


def _interval(found: Mapping[str, Mapping[str, Sequence[float]]], key: str, inputs: Features) -> tuple[float, float]:
    """Log factors of the level; of the nearest wider one where the class has too few chips to tell."""
    order = (
        "scaled", "fitted", "calibrated by 5, known model", "calibrated by 5", "calibrated, known model", "calibrated",
        "spec only, known model", "spec only",
    )  # fmt: skip
    chosen = found.get(key) or next((found[k] for k in reversed(order) if k in found), None)
    told = set(inputs.imputed) - {"pixels"}
    low, high = (chosen or {}).get("traced" if told <= {"layers"} else "told", (-0.7, 0.7))
    if key not in found and key.startswith("spec"):
        low, high = min(low, -log(2.2)), max(high, log(2.2))  # one chip measured; spec only, other vendors
    return low, high


def _flags(
    work: Workload, inputs: Features, amounts: Sequence[float], ranges: Sequence[Sequence[float]], names: Sequence[str]
) -> list[str]:
    flags = [f"{name} told from the other features" for name in inputs.imputed if name not in ("pixels", NO_SIZE, FAR)]
    if FAR in inputs.imputed:
        flags.append("params_m: outside the calibrated range, what is told from it is uncertain, interval widened")
    if NO_SIZE in inputs.imputed:
        flags.append("res: the size that this model's features were counted at is not known, its work is as it stands")
    for name, amount, (low, high) in zip(names, amounts, ranges, strict=True):
        if amount > 0 and high > 0 and not low / 1.01 <= amount <= high * 1.01:
            flags.append(f"{name.removesuffix('_ms')}: outside the calibrated range, interval widened")
    if inputs.soft_ops and work.unit == "gpu":
        flags.append("layer norm, GELU or attention: GPUs measured up to 11 times slower on some of them")
    return flags


def _least_ms(device: Device, work: Workload, inputs: Features, name: str) -> float:
    """What the multiply-accumulates take in int8 on LiteRT's CPU runtime at the best share of the peak; else none."""
    peak = device.int8_peak_gmacs(work.threads) if name == "litert cpu int8" else None
    return 1e3 * inputs.gmacs / (INT8_SHARE * peak) if peak else 0.0


def _any_row(work: Workload, name: str) -> tables.Row | None:
    """A row of the model that states layers and pixels, of the class's own build first; None: there is none."""
    if not work.model:
        return None
    builds = wanted_builds(work.runtime)
    rows = [row for row in tables.latency_rows(work.model) if row["layers"] or row["params_m"] or row["pixels"]]
    order = {build: n for n, build in enumerate(builds)}
    rows.sort(
        key=lambda row: (
            precision_of(row["precision"]) != precision_of(work.precision),
            order.get(build_of(row["runtime"]), 9),
        )
    )
    return rows[0] if rows else None


def _partly(device: Device, work: Workload, calibration: Calibration | None) -> Forecast:
    """Part of the graph runs on the CPU: the partitions' times are summed."""
    share = work.delegated
    full = latency(device, work.model_copy(update={"delegated": 1.0}), calibration)
    rest = latency(device, work.model_copy(update={"delegated": 1.0, "unit": "cpu", "runtime": "litert"}), calibration)
    parts = {f"{work.unit}_ms": share * full.median, "cpu_ms": (1 - share) * rest.median}
    return full.model_copy(
        update={
            "median": sum(parts.values()),
            "low": share * full.low + (1 - share) * rest.low,
            "high": share * full.high + (1 - share) * rest.high,
            "terms": parts,
            "method": f"{share:.0%} on the {work.unit} ({full.method}), the rest on the CPU ({rest.method})",
            "flags": (*full.flags, "partial delegation: copies between units are not counted"),
            "level": full.level if full.level == rest.level else "fitted",
        }
    )
