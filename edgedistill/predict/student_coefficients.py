"""The coefficients of `students.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from edgedistill.specs import Spec


class _Latency(Spec):
    reference: str
    one_core_fp32_gflops: float
    t0_ms: float
    per_operator_ms: float
    per_attention_mmac_ms: float
    least_mmacs: float
    most_mmacs: float
    wider_outside: float
    confidence: float
    low_factor: float
    high_factor: float
    high_factor_transformer: float
    high_factor_depthwise: float


class _Memory(Spec):
    base_mb: float
    base_host_mb: float
    per_file: float
    packed_bytes: Mapping[str, float]
    per_operator_kb: Mapping[str, float]
    per_peak_activation: Mapping[str, float]
    confidence: float
    factor: float


class _Load(Spec):
    packed_ms_per_mb: Mapping[str, float]
    confidence: float
    factor: float


class Coefficients(Spec):
    """`students.toml`, where every block says where its figures come from."""

    latency: _Latency
    int8_gain: Mapping[str, float]
    memory: _Memory
    load: _Load


@cache
def coefficients() -> Coefficients:
    """What this project's own files add to published rows."""
    return Coefficients.read_toml(Path(__file__).with_name("students.toml"))
