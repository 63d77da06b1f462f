"""A student's lines in words, each with its interval and how it is known: those of a plan, and those of the call.

`lines` names them as a budget does; `forecast` answers `edgedistill.predict` for one of them, with the same figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from edgedistill.errors import SpecError, did_you_mean
from edgedistill.predict import students, tables
from edgedistill.predict.devices import Device
from edgedistill.predict.specs import Calibration, Forecast, Level, Workload
from edgedistill.predict.student_coefficients import coefficients
from edgedistill.predict.students import ENERGY, LATENCY, MEMORY, STUDENT, Figures, Rates, StudentWork

LOAD, SUSTAINED, BATTERY = "first_load_ms", "sustained_latency_p95_ms", "battery_percent_per_hour"
PER_HOUR = 3600.0  # inferences that a plan's battery line is for: one each second
UNITS = {LATENCY: "ms", MEMORY: "MB", ENERGY: "mJ", LOAD: "ms", SUSTAINED: "ms", BATTERY: "%/h"}
# The names of the call for the lines that a budget names otherwise.
CALLED = {"latency_ms": LATENCY, "sustained_latency_ms": SUSTAINED}


class _Asked(NamedTuple):
    """What the words of a line depend on."""

    device: Device
    work: StudentWork
    rates: Rates | None
    calibration: Calibration | None
    threads: int
    per_hour: float


def lines(
    device: Device,
    work: StudentWork,
    calibration: Calibration | None = None,
    *,
    threads: int = 1,
    per_hour: float = PER_HOUR,
) -> tuple[Forecast, ...]:
    """Every line that the device's facts allow; one whose facts are missing is left out, never guessed.

    As `students.predictor` has them: latency, memory, energy; then the first load, latency under sustained load and
    percent of the battery for each hour of `per_hour` inferences, the latter two of devices with a battery.
    """
    asked = _Asked(device, work, students.rates(device), calibration, threads, per_hour)
    found = students.predictor(device, calibration)(work)
    return tuple(_told(asked, line) for line in (*found, *_further(asked, found)))


def forecast(
    device: Device, work: Workload, quantity: str, calibration: Calibration | None, per_hour: float | None
) -> Forecast:
    """One line of a workload that is a student, by the name that `edgedistill.predict` has for it.

    Raises:
        SpecError: for an unknown quantity, or one that the device's facts do not tell.
    """
    name = CALLED.get(quantity, quantity)
    if name not in UNITS:
        raise SpecError(f"unknown quantity {quantity!r}{did_you_mean(quantity, [*CALLED, *UNITS])}")
    found = lines(device, students.of(work), calibration, threads=work.threads, per_hour=per_hour or PER_HOUR)
    for line in found:
        if line.quantity == name:
            return line.model_copy(update={"quantity": quantity})
    fact = "battery_wh" if device.one_core_gflops else "one_core_fp32_gflops"
    raise SpecError(f"{device.name}: {fact} is not stated, so there is no {quantity} of a student.")


def _further(asked: _Asked, found: tuple[Figures, ...]) -> Iterator[Figures]:
    named = {line.quantity: line for line in found}
    if asked.rates is None:
        return
    yield _load(asked.work, asked.rates)
    if asked.device.battery_wh is None:
        return
    keep, time, energy = tables.coefficients()["energy"]["sustained"], named[LATENCY], named[ENERGY]
    yield Figures(
        SUSTAINED, time.median / keep["median"], time.low / keep["high"], time.high / keep["low"], time.confidence,
        {LATENCY: time.median, "sustained_share": keep["median"]},
    )  # fmt: skip
    share = 100 * asked.per_hour / (asked.device.battery_wh * 3.6e6)  # 1 Wh = 3.6e6 mJ
    yield Figures(
        BATTERY, energy.median * share, energy.low * share, energy.high * share, energy.confidence,
        {ENERGY: energy.median, "per_hour": asked.per_hour, "battery_wh": asked.device.battery_wh},
    )  # fmt: skip


def _load(work: StudentWork, rates: Rates) -> Figures:
    fit, published = coefficients(), tables.coefficients()["load"]["litert cpu"]
    packed_mb = fit.memory.packed_bytes[work.activations] * work.linear_bytes * work.signatures / 1e6
    terms = {
        "runtime_ms": published["base_ms"],
        "file_ms": published["per_file"] * work.file_bytes / 1e6,
        "packing_ms": fit.load.packed_ms_per_mb[work.activations] * packed_mb * rates.slower,
    }
    median = sum(terms.values())
    return Figures(LOAD, median, median / fit.load.factor, median * fit.load.factor, fit.load.confidence, terms)


def _told(asked: _Asked, line: Figures) -> Forecast:
    own = _measured(line.quantity, asked.calibration)
    level: Level = "calibrated" if own else "fitted"
    if not own and asked.rates is not None and line.quantity not in (MEMORY, LOAD):
        level = asked.rates.level
    return Forecast(
        quantity=line.quantity,
        unit=UNITS[line.quantity],
        median=line.median,
        low=line.low,
        high=line.high,
        confidence=line.confidence,
        method=_method(asked, line.quantity) + (f"; {own}" if own else ""),
        terms=line.terms,
        level=level,
        device=asked.device.name,
    )


def _measured(quantity: str, calibration: Calibration | None) -> str:
    """What own measurements changed of a line, in words; empty: nothing."""
    if calibration is None or quantity == LOAD:
        return ""
    name: str | None = STUDENT + (ENERGY if quantity == BATTERY else quantity)  # a battery's line is that of energy
    if name not in calibration.factors:
        name = None if quantity == MEMORY else students.latency_class(calibration)
    if name is None:
        return ""
    factor, count = calibration.factors[name], calibration.anchors[name]
    return f"x{factor:.2f} by {count} own measurements ({calibration.runtime_build})"


def _method(asked: _Asked, quantity: str) -> str:
    """How a line was told, in words."""
    if quantity == MEMORY:
        base = "Python + runtime" if asked.device.host else "runtime"
        return (
            f"LiteRT CPU: {base} + file + linear weights packed for each signature + operators of each signature + peak"
            " activation"
        )
    if quantity == LOAD:
        return "LiteRT CPU: start-up as on two phones + weights packed as on an x86-64 core; file in the page cache"
    if quantity == ENERGY:
        return "whole-phone power (1.2-2.2 W, seen on one phone) x predicted latency; interval joined with mJ/MAC"
    if quantity == BATTERY:
        return f"energy x {asked.per_hour:g} inferences an hour / battery; the screen and idle power are not in it"
    if quantity == SUSTAINED:
        return "latency after minutes without a pause, as two phones were throttled (0.51 to 0.76 of their speed)"
    return _latency_method(asked)


def _latency_method(asked: _Asked) -> str:
    fit, work, mmacs = coefficients().latency, asked.work, asked.work.macs / 1e6
    gain = coefficients().int8_gain[work.activations]
    arithmetic = "float kernels" if work.activations == "float" else f"int8 x{gain:g} on the MACs"
    told = asked.rates.method if asked.rates else ""
    method = f"a typical inference of one thread; {arithmetic}; {told}"
    if not asked.device.bandwidth_gb_per_s:
        method += "; memory bandwidth not stated, scaled as the core"
    if asked.threads > 1:
        method += f"; of one thread, as no published row shows what {asked.threads} would gain"
    if work.depthwise_macs and work.activations == "dynamic_int8":
        method += "; depthwise layers stay float and are not delegated, upper end widened"
    if work.transformer:
        method += "; upper end widened for layer norm, GELU and attention"
    if not fit.least_mmacs <= mmacs <= fit.most_mmacs:
        widened = ", interval widened" if mmacs > fit.most_mmacs else ""
        measured = f"{fit.least_mmacs:g} to {fit.most_mmacs:g}"
        method += f"; {mmacs:,.4g} million MACs are outside what was measured ({measured}){widened}"
    return method
