"""What a benchmark program said of its launches, as a measurement: figures it does not tell stay None."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgedistill.runners import Job
from edgedistill.runners._energy import energy_of
from edgedistill.runners._launches import Seen, ToolRun, charging, unfit_of
from edgedistill.runners._perfetto import IDLE_S
from edgedistill.specs import Energy, Fingerprint, Launch, Measurement, Provenance
from edgedistill.store import digest_of

NO_ENERGY = "not metered: the benchmark program tells no energy, and loading the file would count as inference"


def summarize_tool(
    job: Job, fingerprint: Fingerprint, kind: str, seen: Sequence[Seen], context: Mapping[str, str | float]
) -> Measurement:
    """All launches of one job by one program. Medians are means where it tells no median; `context` says so."""
    runs = [launch.tool for launch in seen if launch.tool is not None]
    samples = [[value / 1e6 for value in run.samples_ns] for run in runs]
    middles = [_middle(run) for run in runs]
    named = fingerprint.model_copy(update={"runtime": kind, "runtime_version": runs[0].version or "not told"})
    speeds = sorted({key for run in runs for key in run.tokens_per_s})
    told = "median" if all(middle[1] for middle in middles) else "mean"
    return Measurement(
        artifact_sha256=digest_of(job.model),
        provenance=Provenance.EMULATED if fingerprint.emulator else Provenance.MEASURED,
        device=f"{fingerprint.runner}: {fingerprint.model}",
        runtime=f"{kind} {runs[0].version}".strip(),
        signature=job.signature,
        threads=job.threads,
        samples_ms=tuple(value for launch in samples for value in launch),
        launch_counts=tuple(len(launch) for launch in samples) if all(samples) else (),
        launch_medians_ms=tuple(middle[0] for middle in middles),
        first_inference_ms=_median(run.first_ms for run in runs),
        load_ms=_median(run.load_ms for run in runs),
        peak_memory_mb=max((run.peak_mb for run in runs if run.peak_mb is not None), default=None),
        baseline_memory_mb=None,
        context={**context, "launches": float(len(seen)), "launch_statistic": told, "inputs": "the program's own"},
        launches=tuple(_launch(launch, run) for launch, run in zip(seen, runs, strict=True)),
        fingerprint=named,
        tokens_per_s={key: statistics.median(run.tokens_per_s[key] for run in runs) for key in speeds},
        energy=_energy(seen),
        placement=runs[0].placement,
        unfit=unfit_of(seen),
    )


def _energy(seen: Sequence[Seen]) -> Energy:
    """What Perfetto recorded while the program's inferences ran: its last act, as long as their count and mean say."""
    windows: list[dict[str, Any] | None] = []
    for launch in seen:
        run = launch.tool
        if launch.power is None or run is None or run.ended_s is None or not run.summary or not run.summary.count:
            windows.append(None)
            continue
        end, length = round(run.ended_s * 1e9), round(run.summary.count * run.summary.mean_ms * 1e6)
        start = launch.power.started_s * 1e9
        windows.append({
            "names": [], "once": {}, "readings": [], "boot_offset_ns": 0, "runs": run.summary.count,
            "idle_ns": [start, start + IDLE_S * 1e9], "busy_ns": [end - length, end],
            "slack_ns": round(run.slack_s * 1e9),
        })  # fmt: skip
    if not any(windows):
        reasons = [launch.power.why for launch in seen if launch.power and launch.power.why]
        return Energy(energy_mj=None, note=reasons[0] if reasons else NO_ENERGY)
    return energy_of(windows, charging(seen), [launch.power for launch in seen])


def _middle(run: ToolRun) -> tuple[float, bool]:
    """The launch's median in ms, and whether it is one."""
    if run.samples_ns:
        return statistics.median(run.samples_ns) / 1e6, True
    if run.summary is None:
        raise ValueError("a run without samples and without a summary")
    return (run.summary.p50_ms, True) if run.summary.p50_ms is not None else (run.summary.mean_ms, False)


def _launch(seen: Seen, run: ToolRun) -> Launch:
    return Launch(
        load_ms=run.load_ms,
        first_inference_ms=run.first_ms,
        peak_rss_mb=run.peak_mb,
        tokens_per_s=run.tokens_per_s,
        summary=run.summary,
        before=seen.before,
        after=seen.after,
    )


def _median(values: Iterable[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return statistics.median(kept) if kept else None
