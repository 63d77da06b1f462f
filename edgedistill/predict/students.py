"""What a student of this project costs in LiteRT on a CPU: the plan's lines, and what `edgedistill.predict` says of it.

Published rows are of large vision models; at a student's size most of what they tell is extrapolated, and of dynamic
int8 in networks of linear layers they tell nothing. So the speed of the device is that of the class `litert cpu float`,
and `students.toml` has what files of this project's own exporter add: overheads of small graphs, the gain of int8, the
host, and what holds memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp, sqrt
from typing import Literal, NamedTuple

from edgedistill.errors import SpecError
from edgedistill.predict import tables
from edgedistill.predict.classes import family_of, precision_of
from edgedistill.predict.devices import Device
from edgedistill.predict.features import Features, depthwise_gmacs
from edgedistill.predict.latency import latency as latency_of
from edgedistill.predict.specs import Calibration, Level, Workload
from edgedistill.predict.student_coefficients import coefficients
from edgedistill.specs import Spec

FP32_BYTES = 4
STUDENT = "student "  # what the name of a class of a student's own lines begins with
LATENCY, MEMORY, ENERGY = "latency_p95_ms", "peak_memory_mb", "energy_mj"
DEVICE = "litert cpu float"  # the class of published rows that a student's latency is made from
Activations = Literal["float", "dynamic_int8", "static_int8"]
ACTIVATIONS: dict[str, Activations] = {"float": "float", "int8": "static_int8", "dynamic_int8": "dynamic_int8"}
FLOATS = ("fp32", "float32", "f32", "float")  # `precision_of` takes every name for a float's that it does not know
NEEDED = ("gmacs", "act_in_m", "act_out_m", "peak_act_m", "operators", "linear_m", "file_mb", "transformer")
NOISE = 0.12  # of ln(measured / predicted) beyond the anchors' own spread: another student than those measured
FEWEST = 3  # anchors from which an interval may become narrower than the prediction's own
Z80 = 1.2815515655446004
_TERMS = ("macs_ms", "depthwise_macs_ms", "reuse_ms")


class StudentWork(Spec):
    """One inference at the longest bucket, and the file that holds it. MACs are multiply-accumulates.

    `plan.cost.inference` makes it from a student's sizes, `of` from a `Workload` that is a student.
    """

    macs: int
    depthwise_macs: int = 0
    operators: int
    linear_bytes: int
    activation_bytes: int
    peak_activation_bytes: int
    file_bytes: int
    signatures: int
    activations: Activations
    transformer: bool
    attention_macs: int = 0
    """Of `macs`, those of the scores of attention, all layers; those of their products with values are as many."""


class Figures(NamedTuple):
    """One line of a student without its words; a search makes thousands."""

    quantity: str
    median: float
    low: float
    high: float
    confidence: float
    terms: Mapping[str, float]


class Rates(NamedTuple):
    """Milliseconds for one unit of each of `_TERMS` in fp32, and how they are known; `slower` than the reference."""

    macs: float
    depthwise: float
    reuse: float
    slower: float
    method: str
    level: Level


Predictor = Callable[[StudentWork], tuple[Figures, ...]]


def is_student(work: Workload) -> bool:
    """Whether a workload is a student that this module knows: in LiteRT on a CPU; other units have the general one."""
    return work.student and work.unit == "cpu" and family_of(work.runtime) == "litert"


def of(work: Workload) -> StudentWork:
    """A workload that is a student in the units of a plan.

    Raises:
        SpecError: a feature that a student's lines need is missing, or no student has such a precision.
    """
    missing = [name for name in NEEDED if getattr(work, name) is None]
    if missing:
        raise SpecError(
            f"a student's workload needs {', '.join(missing)} as well: take `chosen.work` of a plan, or leave out"
            " `student`."
        )
    activations = ACTIVATIONS.get(precision_of(work.precision))
    if activations is None or (activations == "float" and work.precision.lower() not in FLOATS):
        raise SpecError(f"precision {work.precision!r}: a student's are fp32, int8 and dynamic_int8.")
    if work.transformer and not work.attention_mmacs:
        raise SpecError("a student with attention needs attention_mmacs as well: take `chosen.work` of a plan.")
    known = {name: float(getattr(work, name)) for name in NEEDED}
    return StudentWork(
        macs=round(known["gmacs"] * 1e9),
        depthwise_macs=round((work.dw_gmacs or 0.0) * 1e9),
        operators=round(known["operators"]),
        linear_bytes=round(known["linear_m"] * 1e6),
        activation_bytes=round((known["act_in_m"] + known["act_out_m"]) * 1e6) * FP32_BYTES,
        peak_activation_bytes=round(known["peak_act_m"] * 1e6) * FP32_BYTES,
        file_bytes=round(known["file_mb"] * 1e6),
        signatures=work.signatures,
        activations=activations,
        transformer=bool(work.transformer),
        attention_macs=round((work.attention_mmacs or 0.0) * 1e6),
    )


def predictor(device: Device, calibration: Calibration | None = None) -> Predictor:
    """Latency, memory and energy of many students on one device; what its facts do not allow is left out.

    Latency in ms needs the rate of one core; energy in mJ needs latency and a battery, as only whole phones' power is
    published. Peak memory in MB is the runtime's and the same on every device; on the host it is that of the whole
    process, as the host's runner measures it.
    """
    known = rates(device)

    def lines(work: StudentWork) -> tuple[Figures, ...]:
        memory = _scaled(_memory(device, work), calibration)
        if known is None:
            return (memory,)
        plain = _latency(work, known)
        time = calibrated(plain, calibration)
        if device.battery_wh is None:
            return time, memory
        own = calibration is not None and STUDENT + ENERGY in calibration.factors
        return time, memory, _scaled(_energy(work, plain), calibration) if own else _energy(work, time)

    return lines


def rates(device: Device) -> Rates | None:
    """How fast the class of published rows has one thread in fp32; None: the device does not say what is needed."""
    core = device.one_core_gflops
    if core is None:
        return None
    one = Features(1.0, 0.25, 1.0, 100.0, None, 100.0, 100.0, 1.0, False, False, ())
    half = one.activations_m / 2
    typical = Workload(gmacs=1.0, dw_gmacs=0.25, params_m=1.0, act_in_m=half, act_out_m=half, n_ops=100,
                       transformer=False)  # fmt: skip
    found = latency_of(device, typical)
    macs, depthwise, reuse = (
        found.terms[name] / amount for name, amount in zip(_TERMS, one.terms(_TERMS), strict=True)
    )
    slower = coefficients().latency.one_core_fp32_gflops / core
    return Rates(macs, depthwise, reuse, slower, found.method, found.level)


def _latency(work: StudentWork, rates: Rates) -> Figures:
    """One thread in fp32 at the device's rates, its MACs sped up by int8, overheads of small graphs added.

    The interval is never narrower than that of a specification alone (the rows in predict/data): the gain of int8
    and the overheads were seen on few devices.
    """
    fit = coefficients().latency
    gain = coefficients().int8_gain[work.activations]
    narrower = 1.0 if work.activations == "float" else FP32_BYTES  # of a number in fp32, for each of its bytes in int8
    floats = work.activations == "dynamic_int8" and work.depthwise_macs > 0  # these layers are not delegated
    activations_m = work.activation_bytes / FP32_BYTES / 1e6
    gmacs = work.macs / 1e9
    one = Features(
        gmacs,
        depthwise_gmacs(work.depthwise_macs / 1e9, activations_m, gmacs),
        work.linear_bytes / FP32_BYTES / 1e6,  # as many fp32 numbers as the weights have bytes to move
        activations_m,
        None,
        work.operators,
        work.operators,
        0.0,
        work.transformer,
        work.transformer,
        (),
    )
    regular, depthwise, reuse = one.terms(_TERMS)
    terms = {
        "start_ms": fit.t0_ms * rates.slower,
        "operators_ms": fit.per_operator_ms * work.operators * rates.slower,
        "macs_ms": rates.macs * regular / gain,
        "depthwise_macs_ms": rates.depthwise * depthwise / (1.0 if floats else gain),
        "attention_ms": fit.per_attention_mmac_ms * work.attention_macs / 1e6 * rates.slower,
        "memory_ms": rates.reuse * reuse / sqrt(gain * narrower),  # the root of multiply-accumulates and bytes moved
    }
    median = sum(terms.values())
    high = fit.high_factor_transformer if work.transformer else fit.high_factor
    high = fit.high_factor_depthwise if floats else high
    # below the least what was measured is overhead already, and stays
    wider = max(1.0, work.macs / 1e6 / fit.most_mmacs) ** fit.wider_outside
    low, high = median * fit.low_factor / wider, median * high * wider
    return Figures(LATENCY, median, low, high, fit.confidence, terms)


def _memory(device: Device, work: StudentWork) -> Figures:
    fit, kind = coefficients().memory, work.activations
    python_mb = fit.base_host_mb - fit.base_mb if device.host else 0.0  # known, so outside the factor of the interval
    terms = {
        "process_mb": python_mb,
        "runtime_mb": fit.base_mb,
        "file_mb": fit.per_file * work.file_bytes / 1e6,
        "packed_mb": fit.packed_bytes[kind] * work.linear_bytes * work.signatures / 1e6,
        "operators_mb": fit.per_operator_kb[kind] * work.operators * work.signatures / 1e3,
        "activations_mb": fit.per_peak_activation[kind] * work.peak_activation_bytes / 1e6,
    }
    median = sum(terms.values())
    low = python_mb + (median - python_mb) / fit.factor
    high = python_mb + (median - python_mb) * fit.factor
    return Figures(MEMORY, median, low, high, fit.confidence, terms)


def _energy(work: StudentWork, time: Figures) -> Figures:
    """Formula: mean power of the whole phone times time, W x ms = mJ; its ends also hold what energy per MAC says."""
    found = tables.coefficients()["energy"]
    power, by_macs = found["vision_w"], found["per_mmac_mj"]["cpu"] * work.macs / 1e6
    return Figures(
        ENERGY,
        power["median"] * time.median,
        min(power["low"] * time.low, by_macs / 2),
        max(power["high"] * time.high, by_macs * 2),
        time.confidence,
        {"power_w": power["median"], "latency_ms": time.median, "by_macs_mj": by_macs},
    )


def latency_class(calibration: Calibration | None) -> str | None:
    """The class whose factor a student's latency takes; None: nothing was measured that says anything about it."""
    names = (STUDENT + LATENCY, DEVICE)
    return next((name for name in names if calibration and name in calibration.factors), None)


def calibrated(line: Figures, calibration: Calibration | None) -> Figures:
    """A latency with the factors of its terms, by own measurements of students, else of other networks on the device.

    With three anchors or more the interval is that of the anchors, where it is narrower.
    """
    name = latency_class(calibration)
    if calibration is None or name is None:
        return line
    own = calibration.terms.get(name, {}) if name.startswith(STUDENT) else {}
    factor = calibration.factors[name]
    terms = {key: factor * value * own.get(key, 1.0) for key, value in line.terms.items()}
    return _ends(line, sum(terms.values()) / line.median, name, calibration)._replace(terms=terms)


def _scaled(line: Figures, calibration: Calibration | None) -> Figures:
    """Memory or energy with the factor of own measurements of students."""
    name = STUDENT + line.quantity
    if calibration is None or name not in calibration.factors:
        return line
    factor = calibration.factors[name]
    terms = {key: value if key in ("power_w", "latency_ms") else factor * value for key, value in line.terms.items()}
    return _ends(line, factor, name, calibration)._replace(terms=terms)


def _ends(line: Figures, factor: float, name: str, calibration: Calibration) -> Figures:
    """Median and interval by a factor; the interval narrowed where enough was measured."""
    median, low, high = (factor * value for value in (line.median, line.low, line.high))
    if calibration.anchors[name] >= FEWEST and line.quantity != ENERGY:  # power is not better known as time is
        spread = exp(Z80 * (calibration.spread[name] ** 2 + NOISE**2) ** 0.5)
        low, high = max(low, median / spread), min(high, median * spread)
    return line._replace(median=median, low=low, high=high)
