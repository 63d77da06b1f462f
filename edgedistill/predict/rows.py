"""The measurements themselves: rows of the very device, build, precision and thread count, when there are any."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from statistics import median

from edgedistill.predict import tables
from edgedistill.predict.classes import family_of, precision_of
from edgedistill.predict.devices import Device
from edgedistill.predict.specs import Forecast, Workload

CONFIDENCE = 0.8
_BUILDS = {
    "litert": ("tflite", "litert", "tflite/xnnpack", "xnnpack"),
    "qnn": ("qnn_dlc", "qnn_context_binary", "precompiled_qnn_onnx", "torchscript_onnx_qnn"),
    "onnx": ("onnx",),
    "coreml": ("coreml",),
    "ncnn": ("ncnn",),
    "paddle": ("paddle-lite",),
}


def exact_rows(device: Device, work: Workload) -> list[tables.Row]:
    """Rows of the very model, device, build, precision and thread count."""
    if not work.model:
        return []
    wanted = {precision_of(work.precision)}
    rows = [*tables.latency_rows(work.model), *tables.latency_rows(f"{work.model}_int8")]
    found = [
        row
        for row in rows
        if row["device"] in device.aliases
        and row["unit"] == work.unit
        and precision_of(row["precision"]) in wanted
        and (work.unit != "cpu" or row["threads"] in ("", str(work.threads)))
    ]
    seen = {build_of(row["runtime"]) for row in found}
    build = next((build for build in wanted_builds(work.runtime) if build in seen), None)
    return [row for row in found if build_of(row["runtime"]) == build]


def wanted_builds(runtime: str) -> tuple[str, ...]:
    """Builds that a runtime's name means, first choice first."""
    own, family = build_of(runtime), _BUILDS.get(family_of(runtime), ())
    return (own, *(build for build in family if build != own)) if own in family else family


def build_of(runtime: str) -> str:
    """The build as groups are named by it."""
    return runtime.lower().split(" ")[0]


def exact(device: Device, rows: Sequence[tables.Row]) -> Forecast:
    """The median of the newest rows; the interval is how far such rows repeat."""
    newest = max(row["release"] for row in rows)
    values = [float(row["ms"]) for row in rows if row["release"] == newest]
    middle = median(values)
    low, high = tables.coefficients()["latency"]["exact"]
    source = tables.rows("sources.csv")[int(rows[0]["source"])]["source"]
    return Forecast(
        quantity="latency_ms",
        unit="ms",
        median=middle,
        low=min(middle * exp(low), *values, middle),
        high=max(middle * exp(high), *values, middle),
        confidence=CONFIDENCE,
        method=f"exact row: {rows[0]['runtime']}, {rows[0]['precision']}, {source}",
        terms={"measured_ms": middle},
        level="exact row",
        device=device.name,
    )
