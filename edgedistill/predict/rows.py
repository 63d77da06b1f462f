"""The measurements themselves: rows of the very device, build, precision and thread count, when there are any."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from statistics import median
from typing import NamedTuple

from edgedistill.predict import tables
from edgedistill.predict.classes import family_of, precision_known, precision_of
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
    wanted_here = wanted_builds(work.runtime) or (build_of(work.runtime),)
    build = next((build for build in wanted_here if build in seen), None)
    return [row for row in found if build_of(row["runtime"]) == build]


def wanted_builds(runtime: str) -> tuple[str, ...]:
    """Builds that a runtime's name means, first choice first."""
    own, family = build_of(runtime), _BUILDS.get(family_of(runtime), ())
    return (own, *(build for build in family if build != own)) if own in family else family


def build_of(runtime: str) -> str:
    """The build as groups are named by it."""
    return runtime.lower().split(" ")[0]


class Column(NamedTuple):
    """A quantity that rows state."""

    name: str
    quantity: str
    unit: str


MS = Column("ms", "latency_ms", "ms")
PEAK_MB = Column("peak_mb", "peak_memory_mb", "MB")
INIT_MS = Column("init_ms", "first_load_ms", "ms")
NO_REPEATS = "exact row: nobody measured it again, its interval is that of latencies that were"


def stated(device: Device, work: Workload, column: Column) -> list[tables.Row]:
    """Exact rows that state a quantity beside latency; none where the caller's file or its entry points are others."""
    if work.file_mb is not None or work.signatures > 1 or work.delegated < 1.0 or not precision_known(work.precision):
        return []
    return [row for row in exact_rows(device, work) if (tables.number(row[column.name]) or 0.0) > 0]


def exact(device: Device, rows: Sequence[tables.Row], column: Column = MS) -> Forecast:
    """The median of the newest rows; the interval is how far rows of latency repeat."""
    newest = max(row["release"] for row in rows)
    values = [float(row[column.name]) for row in rows if row["release"] == newest]
    middle = median(values)
    low, high = tables.coefficients()["latency"]["exact"]
    source = tables.rows("sources.csv")[int(rows[0]["source"])]["source"]
    return Forecast(
        quantity=column.quantity,
        unit=column.unit,
        median=middle,
        low=min(middle * exp(low), *values, middle),
        high=max(middle * exp(high), *values, middle),
        confidence=CONFIDENCE,
        method=f"exact row: {rows[0]['runtime']}, {rows[0]['precision']}, {source}",
        terms={f"measured_{column.unit.lower()}": middle},
        level="exact row",
        device=device.name,
        flags=() if column is MS else (NO_REPEATS,),
    )
