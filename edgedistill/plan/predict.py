"""What a file will cost on a device it has never run on: median, interval, method and terms of each budget line.

The lines of a budget from what the search knows of a student. How fast the device works is `edgedistill.predict`'s;
`predict.toml` has what published rows do not tell: overheads of small graphs, the gain of dynamic int8, the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import sqrt
from pathlib import Path

from edgedistill.predict import Workload as Inference
from edgedistill.predict import predict as forecast
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


def predict(target: Target, workload: Workload) -> tuple[Prediction, ...]:
    """The budget lines that the facts of `target` allow to predict, named as `Budget` names them.

    Latency in ms needs the CPU's `one_core_fp32_gflops`; energy in mJ needs latency and a battery, as only whole-phone
    power is published. A line whose facts are missing is left out, never guessed. Peak memory in MB is the runtime's
    and the same on every device; on the host it is that of the whole process, as the host's runner measures it.
    """
    latency = _latency(target, workload)
    lines = [latency, _memory(target, workload), None if latency is None else _energy(target, workload, latency)]
    return tuple(line for line in lines if line is not None)


def _latency(target: Target, work: Workload) -> Prediction | None:
    """One thread in fp32 by `edgedistill.predict`, its MACs sped up by int8, overheads of small graphs added.

    The interval is never narrower than that of a specification alone (the rows in predict/data): the gain of int8
    and the overheads were seen on few devices.
    """
    fit = _coefficients().latency
    core = target.cpu.one_core_fp32_gflops
    if core is None:
        return None
    slower = fit.one_core_fp32_gflops / core
    gain = _coefficients().int8_gain[work.activations]
    elements_m = work.activation_bytes / FP32_BYTES / 1e6
    found = forecast(
        target,
        Inference(
            gmacs=work.macs / 1e9,
            dw_gmacs=work.depthwise_macs / 1e9,
            params_m=work.linear_bytes / FP32_BYTES / 1e6,  # as many fp32 numbers as the weights have bytes to move
            act_in_m=elements_m / 2,
            act_out_m=elements_m / 2,
            n_ops=work.operators,
            transformer=work.transformer,
        ),
    )
    terms = {
        "start_ms": fit.t0_ms * slower,
        "operators_ms": fit.per_operator_ms * work.operators * slower,
        "macs_ms": found.terms["macs_ms"] / gain,
        "depthwise_macs_ms": found.terms["depthwise_macs_ms"] / gain,
        "memory_ms": found.terms["reuse_ms"] / sqrt(gain),  # the root of multiply-accumulates and numbers moved
    }
    median = sum(terms.values())
    method = f"a typical inference of one thread; int8 x{gain:g} on the MACs; {found.method}"
    if not target.memory_bandwidth_gb_per_s:
        method += "; memory bandwidth not stated, scaled as the core"
    if target.threads > 1:
        method += f"; of one thread, as no published row shows what {target.threads} would gain"
    if work.transformer:
        method += "; upper end widened for layer norm, GELU and attention"
    return Prediction(
        quantity="latency_p95_ms",
        unit="ms",
        median=median,
        low=median * fit.low_factor,
        high=median * (fit.high_factor_transformer if work.transformer else fit.high_factor),
        confidence=fit.confidence,
        method=method,
        terms=terms,
    )


def _memory(target: Target, workload: Workload) -> Prediction:
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
    return Prediction(
        quantity="peak_memory_mb",
        unit="MB",
        median=median,
        low=python_mb + (median - python_mb) / fit.factor,
        high=python_mb + (median - python_mb) * fit.factor,
        confidence=fit.confidence,
        method=f"LiteRT CPU: {'Python + ' if host else ''}runtime + file + packed linear weights of each"
        " signature + 2.7 x peak activation",
        terms=terms,
    )


def _energy(target: Target, workload: Workload, latency: Prediction) -> Prediction | None:
    """Formula: mean power of the whole phone times time. W x ms = mJ."""
    if target.battery_wh is None:
        return None
    fit = _coefficients().energy
    by_macs = fit.per_mmac_mj * workload.macs / 1e6
    median = fit.median_w * latency.median
    return Prediction(
        quantity="energy_mj",
        unit="mJ",
        median=median,
        low=min(fit.low_w * latency.low, by_macs / 2),
        high=max(fit.high_w * latency.high, by_macs * 2),
        confidence=latency.confidence,
        method="whole-phone power (1.2-2.2 W, seen on one phone) x predicted latency; interval joined with mJ/MAC",
        terms={"power_w": fit.median_w, "latency_ms": latency.median, "by_macs_mj": by_macs},
    )
