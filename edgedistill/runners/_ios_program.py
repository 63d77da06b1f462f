"""One launch of one .mlpackage on a connected iPhone, run on a Mac as `python _ios_program.py JOB ANSWER`.

It drives Apple's own tooling (coremltools' MLModelBenchmarker, which installs a runner app over `devicectl`) and writes
the answer that every measuring program writes. Times are those of the prediction on the phone, in the app.
THIS WAS NOT RUN WITH A PHONE; on Linux it is run against a stand-in of coremltools with the same calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

JOB_IS_WRONG, PACKAGE_IS_MISSING, DEVICE_IS_LOST = 64, 65, 66


class JobError(Exception):
    """The job names something that is not there."""


class DeviceError(Exception):
    """The phone is not there, or does not take the app."""


def choose(devices: list[Any], where: str) -> Any:
    """The phone by name, identifier or UDID; the only one without.

    Raises:
        DeviceError: none fits. JobError: several do, and none is named.
    """
    names = ", ".join(sorted(device.name for device in devices)) or "none"
    fitting = [device for device in devices if not where or where in (device.name, device.identifier, device.udid)]
    if not fitting:
        raise DeviceError(f"no connected iPhone {where!r}; connected now: {names}. Unlock it and trust this Mac.")
    if len(fitting) > 1:
        raise JobError(f"several iPhones are connected: name one, --on ios:NAME ({names})")
    return fitting[0]


async def ready(where: str) -> Any:
    """The phone with the runner app on it."""
    from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials, Device, DeviceType

    device = choose(list(Device.get_connected_devices(DeviceType.IPHONE)), where)
    if device.developer_mode_state != "enabled":
        raise DeviceError(f"{device.name}: developer mode is off: Settings, Privacy & Security, Developer Mode")
    names = {"development_team": "TEAM", "provisioning_profile_uuid": "PROFILE", "bundle_identifier": "BUNDLE"}
    told = {key: told for key, name in names.items() if (told := os.environ.get(f"EDGEDISTILL_IOS_{name}"))}
    if not told:
        raise JobError("the runner app must be signed: set EDGEDISTILL_IOS_TEAM to your Apple development team's id")
    return await device.prepare_for_model_debugging(credentials=AppSigningCredentials(**told))


def feeds_of(inputs: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The samples with a batch axis of one."""
    import numpy as np

    count = len(next(iter(inputs.values())))
    return [{name: np.asarray(rows[n], np.int32).reshape(1, -1) for name, rows in inputs.items()} for n in range(count)]


async def timed(benchmarker: Any, feeds: list[dict[str, Any]], runs: int, seconds: float, cap_s: float) -> list[float]:
    """Milliseconds of single predictions, sample after sample, until both `runs` and `seconds` are reached."""
    found: list[float] = []
    start = time.monotonic()
    while (len(found) < runs or time.monotonic() - start < seconds) and time.monotonic() - start < cap_s:
        seen = await benchmarker.benchmark_predict(inputs=feeds[len(found) % len(feeds)], iterations=1, warmup=False)
        found += seen.samples
    return found


async def sustained(benchmarker: Any, feeds: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """As the other measuring program: medians of windows of a minute, or of a fifth of a shorter run."""
    window = min(60.0, seconds / 5)
    windows = [await timed(benchmarker, feeds, 1, window, window) for _ in range(round(seconds / window))]
    return {"seconds": seconds, "window_s": window, "medians_ns": [statistics.median(seen) * 1e6 for seen in windows]}


async def placed(benchmarker: Any, feeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Operators by compute unit, from Core ML's plan: its estimate of each one's share of the prediction."""
    units: dict[str, tuple[int, float]] = {}
    for item in await benchmarker.benchmark_operation_execution(inputs=feeds[0], iterations=10, warmup=True):
        if item.compute_device_usage is None:
            continue
        kind = type(item.compute_device_usage.preferred_compute_device).__name__
        unit = next((name for word, name in (("Neural", "neural engine"), ("GPU", "gpu")) if word in kind), "cpu")
        count, spent = units.get(unit, (0, 0.0))
        statistic = item.measurement.statistics
        units[unit] = (count + 1, spent + (statistic.median if statistic else 0.0))
    return [{"unit": unit, "operators": count, "time_ms": spent} for unit, (count, spent) in units.items()]


async def launch(job: dict[str, Any]) -> dict[str, Any]:
    """Every figure of one launch."""
    import coremltools as ct
    from coremltools.models.ml_program.experimental.async_wrapper import MLModelAsyncWrapper
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

    device = await ready(job["where"])
    model = ct.models.MLModel(job["model"], skip_model_load=True, compute_units=ct.ComputeUnit[job["compute_units"]])
    benchmarker = MLModelBenchmarker(model=model, device=device)
    feeds = feeds_of(job["inputs"])
    load = await benchmarker.benchmark_load(iterations=1)
    first = await benchmarker.benchmark_predict(inputs=feeds[0], iterations=1, warmup=False)
    outputs = []
    if job["answers"]:
        loaded = MLModelAsyncWrapper.from_spec_or_path(
            spec_or_path=model.get_spec(), weights_dir=model.weights_dir, compute_units=model.compute_unit,
            function_name=model.function_name, optimization_hints=model.optimization_hints, device=device,
        )  # fmt: skip
        await loaded.load()
        for sample in feeds:
            answer = await loaded.predict(sample)
            outputs.append({name: value.reshape(-1).tolist() for name, value in answer.items()})
        await loaded.unload()
    await timed(benchmarker, feeds, job["warmup_runs"], job["warmup_s"], job["cap_s"])
    start = time.monotonic()
    samples = await timed(benchmarker, feeds, job["runs_min"], job["time_s"], job["cap_s"])
    return {
        "nonce": job["nonce"],
        "runtime": ["Core ML", f"iOS {device.os_version} ({device.os_build_number}), coremltools {ct.__version__}"],
        "load_ns": round(load.samples[0] * 1e6),
        "first_ns": round(first.samples[0] * 1e6),
        "samples_ns": [round(value * 1e6) for value in samples],
        "measured_ns": round((time.monotonic() - start) * 1e9),
        "meters": None,
        "outputs": outputs,
        "tokens_per_s": {},
        "sustained": await sustained(benchmarker, feeds, job["sustained_s"]) if job["sustained_s"] else None,
        "baseline_kb": None,  # Apple's tooling tells neither memory nor energy
        "peak_kb": None,
        "involuntary_switches": None,
        "device": {"name": device.name, "udid": device.udid, "os_version": device.os_version,
                   "os_build": device.os_build_number},
        "placement": await placed(benchmarker, feeds) if job["answers"] else [],
    }  # fmt: skip


def main(job_file: str, answer_file: str) -> int:
    """Measure the job and put the whole answer in place at once; the exit code."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    try:
        answer = asyncio.run(launch(job))
    except (JobError, DeviceError) as error:
        sys.stderr.write(f"{error}\n")
        return JOB_IS_WRONG if isinstance(error, JobError) else DEVICE_IS_LOST
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{sys.executable} has no package {error.name}: pip install 'edgedistill[coreml]'\n")
        return PACKAGE_IS_MISSING
    partial = Path(f"{answer_file}.partial")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.replace(answer_file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2]))
