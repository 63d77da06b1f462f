"""`benchmark_results.json` of ExecuTorch's benchmark app for Android, old and new: a list of figures of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgedistill.errors import DataError
from edgedistill.parsers._text import as_number, load_json
from edgedistill.specs import Spec

MEBI = 2**20 / 1e6


class ExecutorchRun(Spec):
    """One run of one model. `trimmed_mean_ms` leaves out the fastest and the slowest tenth. Memory is in MB of 10^6
    bytes; the app subtracts what it used before loading. None: not told. `others` are figures of other names.
    """

    model: str
    backend: str
    quantization: str
    device: str
    system: str
    mean_ms: float | None = None
    trimmed_mean_ms: float | None = None
    load_ms: float | None = None
    generate_ms: float | None = None
    decode_tokens_per_s: float | None = None
    pss_mb: float | None = None
    others: Mapping[str, float] = {}


FIGURES = {
    "avg_inference_latency(ms)": ("mean_ms", 1.0),
    "trimmean_inference_latency(ms)": ("trimmed_mean_ms", 1.0),
    "model_load_time(ms)": ("load_ms", 1.0),
    "generate_time(ms)": ("generate_ms", 1.0),
    "token_per_sec": ("decode_tokens_per_s", 1.0),
    "ram_pss_usage(mb)": ("pss_mb", MEBI),
}


def parse(text: str) -> ExecutorchRun:
    """One file.

    Raises:
        DataError: it is another list, of several models, cut off, or the model could not be loaded.
    """
    value = load_json(text)
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(item, dict) and "metric" in item for item in value)
    ):
        raise DataError("no list of figures with a 'metric' each: not ExecuTorch's benchmark_results.json")
    models = [_part(item, "benchmarkModel") for item in value]
    if any(model != models[0] for model in models):
        raise DataError("figures of several models: give the file of one")
    told: dict[str, float] = {}
    for item in value:
        name = str(item["metric"])
        if name in told:
            raise DataError(f"{name} stands there twice: give the file of one run")
        told[name] = as_number(item.get("actualValue", item.get("actual")), name)
    if told.get("load_status", 0.0):
        raise DataError(f"the model could not be loaded: status {told['load_status']:g}")
    known: dict[str, Any] = {key: told[name] * unit for name, (key, unit) in FIGURES.items() if told.get(name, 0.0) > 0}
    if not known:
        raise DataError(f"no figure above zero of {', '.join(FIGURES)}")
    info = _part(value[0], "deviceInfo") or value[0]
    return ExecutorchRun(
        model=str(models[0].get("name", "")),
        backend=str(models[0].get("backend", "")),
        quantization=str(models[0].get("quantization", "")),
        device=f"{info.get('device', '')} {info.get('arch', '')}".strip(),
        system=str(info.get("os", "")),
        others={name: number for name, number in told.items() if name not in FIGURES and name != "load_status"},
        **known,
    )


def _part(item: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = item.get(key)
    return found if isinstance(found, dict) else {}
