"""What was built is measured on this machine, compared in a ledger, and judged. Never cached: it is an observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgedistill.gate import GateFacts, gate
from edgedistill.pipeline.fleet import fleet_checks
from edgedistill.pipeline.proofs import model_name, read_json
from edgedistill.pipeline.trained import References
from edgedistill.runners import Job
from edgedistill.runners.host import Timing, measure_many
from edgedistill.specs import (
    Artifact,
    Budget,
    Check,
    GateResult,
    LedgerRow,
    Measurement,
    PairedCounts,
    Parity,
    Plan,
    Progress,
    Quality,
    QualityFloor,
    Target,
)
from edgedistill.store import Finished, bytes_of

SHIPPED = "student int8, shipped"
# Short, because it is paid on every build: about half a second for each launch. `edgedistill bench` takes longer.
TIMING = Timing(warmup_s=0.1, runs_min=50, time_s=0.35, energy_s=1.0)
LAUNCHES = 3


@dataclass(frozen=True)
class Judged:
    """The ledger, the host's timings by ledger row, and the gate's verdict on each format; `gate` is the worst."""

    ledger: tuple[LedgerRow, ...]
    measurements: Mapping[str, Measurement]
    gate: GateResult
    qualities: Mapping[str, Quality]
    parity: Mapping[str, Parity]
    paired: Mapping[str, PairedCounts]
    right: Mapping[str, str]


def judge(
    plan: Plan,
    verified: Mapping[str, Finished],
    exported: Mapping[str, Finished],
    references: References,
    recorded: Finished,
    arms: Mapping[str, Quality],
    watch: Progress,
) -> Judged:
    """Measure the shipped file and those it is compared with, interleaved; fill the ledger; gate the shipped file."""
    name = plan.formats[0]
    shipped = exported[name].file(model_name(name))
    files = {
        "teacher": references.teacher.file("teacher_float.tflite"),
        "student float": references.student.file("student_float.tflite"),
        SHIPPED: shipped,
        "student int8, post-training": references.student.file("student_ptq.tflite"),
    }
    measurements = _measure(plan, {k: path for k, path in files.items() if path.suffix == ".tflite"}, references, watch)
    qualities = _qualities(verified[name])
    ptq = Quality(**read_json(references.student.file("quality.json"))["ptq"])
    worth = dict(zip(files, (qualities["teacher"], qualities["float"], qualities["file"], ptq), strict=True))
    parameters = read_json(verified[name].file("parameters.json"))["student"]
    sizes = {"teacher": read_json(recorded.file("facts.json"))["parameters"]}
    ledger = [
        _row(key, sizes.get(key, parameters), path, worth[key], measurements.get(key)) for key, path in files.items()
    ]
    for other in plan.formats[1:]:
        path = exported[other].file(model_name(other))
        ledger.append(
            _row(f"the same student as .{other}", parameters, path, _qualities(verified[other])["file"], None)
        )
    ledger += [_arm_row(key, parameters, quality) for key, quality in arms.items()]
    parity = {key: Parity(**read_json(done.file("parity.json"))) for key, done in verified.items()}
    paired = {key: PairedCounts(**read_json(done.file("paired.json"))) for key, done in verified.items()}
    right = {key: str(read_json(done.file("right.json"))) for key, done in verified.items()}
    checks: list[Check] = []
    for format_name in plan.formats:
        facts = GateFacts(
            artifact=Artifact(**read_json(exported[format_name].file("artifact.json"))),
            teacher=qualities["teacher"],
            file=_qualities(verified[format_name])["file"],
            parity=parity[format_name],
            paired=paired[format_name],
            host=measurements.get(SHIPPED) if format_name == name else None,
            predictions=plan.chosen.predictions if format_name == name else (),
        )
        checks += judge_format(plan.target, plan.budget, plan.profile.quality, facts, first=format_name == name)
        if format_name == name:
            checks += fleet_checks(plan.fleet, plan.profile.budget, facts, plan.chosen.others)
    result = GateResult(target=plan.target.name, checks=tuple(checks))
    return Judged(tuple(ledger), measurements, result, qualities, parity, paired, right)


def judge_format(
    target: Target, budget: Budget, quality: QualityFloor, facts: GateFacts, *, first: bool
) -> tuple[Check, ...]:
    """The lines of one format's file. Those of a further format carry its name, and of the budget only the size: time,
    memory and energy are the device's, which runs one of the files.
    """
    if first:
        return gate(target, budget, quality, facts).checks
    checks = gate(target, Budget(size_mb=budget.size_mb), quality, facts).checks
    return tuple(check.model_copy(update={"name": f"{facts.artifact.format}: {check.name}"}) for check in checks)


def _qualities(verified: Finished) -> dict[str, Quality]:
    return {key: Quality(**value) for key, value in read_json(verified.file("quality.json")).items()}


def _measure(plan: Plan, files: Mapping[str, Path], references: References, watch: Progress) -> dict[str, Measurement]:
    inputs = {"teacher": read_json(references.teacher.file("inputs.json"))}
    student = read_json(references.student.file("inputs.json"))
    longest = f"length_{plan.profile.student.buckets[-1]}"
    jobs = {key: Job(path, longest, inputs.get(key, student), plan.target.threads) for key, path in files.items()}
    watch.begin("measure", len(jobs) * LAUNCHES, "launch")
    found = measure_many(jobs, launches=LAUNCHES, timing=TIMING, progress=watch)
    if SHIPPED not in found:
        watch.end(f"this host runs no .{plan.formats[0]} at speed: only the files it is compared with were timed")
        return found
    faster = found["teacher"].latency_p50_ms / found[SHIPPED].latency_p50_ms
    watch.end(f"this host: p50 {found[SHIPPED].latency_p50_ms:.3f} ms, {faster:.0f}x faster than the teacher")
    return found


def _row(name: str, parameters: int, path: Path, quality: Quality, seen: Measurement | None) -> LedgerRow:
    row = LedgerRow(name=name, parameters=parameters, size_mb=bytes_of(path) / 1e6, quality=quality)
    if seen is None:
        return row
    timed = {"latency_p50_ms": seen.latency_p50_ms, "latency_p95_ms": seen.latency_p95_ms}
    return row.model_copy(update=timed | {"peak_memory_mb": seen.peak_memory_mb, "runtime": seen.runtime})


def _arm_row(name: str, parameters: int, quality: Quality) -> LedgerRow:
    note = "honest arm: same student, data, augmentation and steps; int8 in torch, not exported"
    return LedgerRow(name=name, parameters=parameters, size_mb=None, quality=quality, note=note)
