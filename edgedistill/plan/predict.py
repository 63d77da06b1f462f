"""What a file will cost on a device it has never run on: median, interval, method and terms of each budget line.

The lines of a budget from what the search knows of a student. How fast the device works is `edgedistill.predict`'s;
`predict.toml` has what published rows do not tell: overheads of small graphs, the gain of dynamic int8, the host.
So a call of `edgedistill.predict` with the features of a student is another forecast, from published networks alone: of
encoders it says up to twice as much (64 tokens of the default student on the host: 0.50 ms, this 0.26, measured 0.28).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import sqrt
from pathlib import Path
from typing import NamedTuple

from edgedistill.predict import Workload as Inference
from edgedistill.predict import predict as forecast
from edgedistill.predict.features import Features, depthwise_gmacs
from edgedistill.specs import Prediction, Spec, Target

FP32_BYTES = 4


class Workload(Spec):
    """One inference at the longest bucket, and the file that holds it. MACs are multiply-accumulates.

    `plan.cost.inference` makes it from a student's sizes.
    """

    macs: int
    depthwise_macs: int = 0
    operators: int
    linear_bytes: int
    activation_bytes: int
    peak_activation_bytes: int
    file_bytes: int
    signatures: int
    activations: str
    transformer: bool


class _Latency(Spec):
    reference: str
    one_core_fp32_gflops: float
    t0_ms: float
    per_operator_ms: float
    least_mmacs: float
    most_mmacs: float
    wider_outside: float
    confidence: float
    low_factor: float
    high_factor: float
    high_factor_transformer: float


class _Memory(Spec):
    base_mb: float
    base_host_mb: float
    per_file: float
    per_packed: float
    packed_bytes: Mapping[str, float]
    per_peak_activation: float
    confidence: float
    factor: float


class _Energy(Spec):
    low_w: float
    median_w: float
    high_w: float
    per_mmac_mj: float


class _Coefficients(Spec):
    latency: _Latency
    int8_gain: Mapping[str, float]
    memory: _Memory
    energy: _Energy


@cache
def _coefficients() -> _Coefficients:
    return _Coefficients.read_toml(Path(__file__).with_name("predict.toml"))


class Figures(NamedTuple):
    """One budget line without its words; a search makes thousands."""

    quantity: str
    median: float
    low: float
    high: float
    confidence: float
    terms: Mapping[str, float]


Predictor = Callable[[Workload], tuple[Figures, ...]]
UNITS = {"latency_p95_ms": "ms", "peak_memory_mb": "MB", "energy_mj": "mJ"}
_TERMS = ("macs_ms", "depthwise_macs_ms", "reuse_ms")


class _Rates(NamedTuple):
    """Milliseconds for one unit of each of `_TERMS` in fp32, and how they are known; `slower` than the reference."""

    macs: float
    depthwise: float
    reuse: float
    slower: float
    method: str


def predict(target: Target, workload: Workload) -> tuple[Prediction, ...]:
    """The budget lines that the facts of `target` allow to predict, named as `Budget` names them.

    Latency in ms needs the CPU's `one_core_fp32_gflops`; energy in mJ needs latency and a battery, as only whole-phone
    power is published. A line whose facts are missing is left out, never guessed. Peak memory in MB is the runtime's
    and the same on every device; on the host it is that of the whole process, as the host's runner measures it.
    """
    rates = _rates(target)
    return tuple(
        Prediction(
            quantity=line.quantity,
            unit=UNITS[line.quantity],
            median=line.median,
            low=line.low,
            high=line.high,
            confidence=line.confidence,
            method=_method(target, workload, line.quantity, rates),
            terms=line.terms,
        )
        for line in _figures(target, workload, rates)
    )


def predictor(target: Target) -> Predictor:
    """`predict` without words, for many workloads of one device."""
    rates = _rates(target)
    return lambda workload: _figures(target, workload, rates)


def _figures(target: Target, workload: Workload, rates: _Rates | None) -> tuple[Figures, ...]:
    memory = _memory(target, workload)
    if rates is None:
        return (memory,)
    latency = _latency(workload, rates)
    return (latency, memory) if target.battery_wh is None else (latency, memory, _energy(workload, latency))


def _rates(target: Target) -> _Rates | None:
    """How fast `edgedistill.predict` has one thread in fp32; None: the target does not say what is needed."""
    core = target.cpu.one_core_fp32_gflops
    if core is None:
        return None
    one = Features(1.0, 0.25, 1.0, 100.0, None, 100.0, 100.0, 1.0, False, False, ())
    found = forecast(
        target,
        Inference(
            gmacs=one.gmacs,
            dw_gmacs=one.depthwise_gmacs,
            params_m=one.params_m,
            act_in_m=one.activations_m / 2,
            act_out_m=one.activations_m / 2,
            n_ops=round(one.n_ops),
            transformer=one.transformer,
        ),
    )
    macs, depthwise, reuse = (
        found.terms[name] / amount for name, amount in zip(_TERMS, one.terms(_TERMS), strict=True)
    )
    return _Rates(macs, depthwise, reuse, _coefficients().latency.one_core_fp32_gflops / core, found.method)


def _latency(work: Workload, rates: _Rates) -> Figures:
    """One thread in fp32 by `edgedistill.predict`, its MACs sped up by int8, overheads of small graphs added.

    The interval is never narrower than that of a specification alone (the rows in predict/data): the gain of int8
    and the overheads were seen on few devices.
    """
    fit = _coefficients().latency
    gain = _coefficients().int8_gain[work.activations]
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
        "depthwise_macs_ms": rates.depthwise * depthwise / gain,
        "memory_ms": rates.reuse * reuse / sqrt(gain),  # the root of multiply-accumulates and numbers moved
    }
    median = sum(terms.values())
    high = fit.high_factor_transformer if work.transformer else fit.high_factor
    # below the least what was measured is overhead already, and stays
    wider = max(1.0, work.macs / 1e6 / fit.most_mmacs) ** fit.wider_outside
    low, high = median * fit.low_factor / wider, median * high * wider
    return Figures("latency_p95_ms", median, low, high, fit.confidence, terms)


def _memory(target: Target, workload: Workload) -> Figures:
    fit = _coefficients().memory
    host = target.runner == "host"
    python_mb = fit.base_host_mb - fit.base_mb if host else 0.0  # known, so it is outside the factor of the interval
    terms = {
        "process_mb": python_mb,
        "runtime_mb": fit.base_mb,
        "file_mb": fit.per_file * workload.file_bytes / 1e6,
        "packed_mb": fit.per_packed
        * fit.packed_bytes[workload.activations]
        * workload.linear_bytes
        * workload.signatures
        / 1e6,
        "activations_mb": fit.per_peak_activation * workload.peak_activation_bytes / 1e6,
    }
    median = sum(terms.values())
    low = python_mb + (median - python_mb) / fit.factor
    high = python_mb + (median - python_mb) * fit.factor
    return Figures("peak_memory_mb", median, low, high, fit.confidence, terms)


def _energy(workload: Workload, latency: Figures) -> Figures:
    """Formula: mean power of the whole phone times time. W x ms = mJ."""
    fit = _coefficients().energy
    by_macs = fit.per_mmac_mj * workload.macs / 1e6
    return Figures(
        "energy_mj",
        fit.median_w * latency.median,
        min(fit.low_w * latency.low, by_macs / 2),
        max(fit.high_w * latency.high, by_macs * 2),
        latency.confidence,
        {"power_w": fit.median_w, "latency_ms": latency.median, "by_macs_mj": by_macs},
    )


def _method(target: Target, work: Workload, quantity: str, rates: _Rates | None) -> str:
    """How a line was told, in words."""
    if quantity == "peak_memory_mb":
        base = "Python + runtime" if target.runner == "host" else "runtime"
        return f"LiteRT CPU: {base} + file + packed linear weights of each signature + 2.7 x peak activation"
    if quantity == "energy_mj":
        return "whole-phone power (1.2-2.2 W, seen on one phone) x predicted latency; interval joined with mJ/MAC"
    gain = _coefficients().int8_gain[work.activations]
    told = rates.method if rates else ""
    method = f"a typical inference of one thread; int8 x{gain:g} on the MACs; {told}"
    if not target.memory_bandwidth_gb_per_s:
        method += "; memory bandwidth not stated, scaled as the core"
    if target.threads > 1:
        method += f"; of one thread, as no published row shows what {target.threads} would gain"
    if work.transformer:
        method += "; upper end widened for layer norm, GELU and attention"
    fit, mmacs = _coefficients().latency, work.macs / 1e6
    if not fit.least_mmacs <= mmacs <= fit.most_mmacs:
        widened = ", interval widened" if mmacs > fit.most_mmacs else ""
        measured = f"{fit.least_mmacs:g} to {fit.most_mmacs:g}"
        method += f"; {mmacs:,.4g} million MACs are outside what was measured ({measured}){widened}"
    return method
