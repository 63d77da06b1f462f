"""A build's facts for a report, made up."""

from __future__ import annotations

from edgedistill.report import Curve, ReportData, Split
from edgedistill.specs import (
    Artifact,
    Budget,
    Candidate,
    Check,
    ComputeUnit,
    DataSpec,
    DistilSpec,
    GateResult,
    LedgerRow,
    LossTerm,
    Manifest,
    Measurement,
    Parity,
    Plan,
    PlannedStage,
    Prediction,
    Profile,
    Provenance,
    Quality,
    SizeEstimate,
    StudentSpec,
    Target,
    TeacherSource,
    TeacherSpec,
    Verdict,
)

SHA = "9f" * 32
HOSTILE = "$\\nope$ <script>alert(1)</script> </svg> {{ 7*7 }} | `x` \x00\x1b\ud800 日本語 " + "long " * 40


def quality(correct: int) -> Quality:
    return Quality(accuracy=correct / 1000, low=correct / 1000 - 0.02, high=correct / 1000 + 0.015, correct=correct,
                   rows=1000)  # fmt: skip


def measurement(median: float) -> Measurement:
    samples = tuple(median * (1 + 0.1 * ((7 * index) % 11) / 11) for index in range(300))
    return Measurement(
        artifact_sha256=SHA, provenance=Provenance.MEASURED, device="host: Some CPU", runtime="ai-edge-litert 2.3.0",
        signature="length_32", threads=1, samples_ms=samples, launch_counts=(100, 100, 100),
        launch_medians_ms=(median,) * 3, first_inference_ms=1.0, load_ms=1.0, peak_memory_mb=50.0,
        baseline_memory_mb=36.0, context={"governor": "performance", "cores": 2.0},
    )  # fmt: skip


def candidate(layers: int, violations: tuple[str, ...] = ()) -> Candidate:
    prediction = Prediction(
        quantity="latency_p95_ms", unit="ms", median=4.1, low=1.84, high=9.84, confidence=0.8, method="scaled", terms={}
    )
    return Candidate(
        config={"layers": layers}, parameters=1_912_330, macs=45_900_000, size=SizeEstimate(total_mb=1.98, parts_mb={}),
        predictions=(prediction,), violations=violations, teacher_ratio=11.9,
    )  # fmt: skip


def plan(runner: str) -> Plan:
    budget = Budget(size_mb=8, latency_p95_ms=10)
    device = Target(
        name="pixel8", title="Google Pixel 8" if runner != "host" else "This machine", soc="s", os="android",
        ram_mb=8000, formats=("tflite",), runner=runner, compute_units=(ComputeUnit(kind="cpu", name="c"),),
        source="made up", budget=budget,
    )  # fmt: skip
    losses = (LossTerm(loss="soft_kl"),)
    profile = Profile(
        name="default", teacher=TeacherSpec(sources=(TeacherSource(kind="package", name="teacher"),)),
        data=DataSpec(train="builtin:x"), student=StudentSpec(candidates=({"layers": 3},)),
        stages=(DistilSpec(name="quantize", epochs=1, learning_rate=0.1, fake_quant=True, losses=losses),),
    )  # fmt: skip
    return Plan(
        target=device, profile=profile, budget=budget, chosen=candidate(3), candidates=(
            candidate(12, ("size_mb: 34 MB, limit 8 MB",)), candidate(3), candidate(2)),
        stages=(PlannedStage(name="quantize", spec={}, why="the int8 grid in the loop"),), formats=("tflite",),
        unmeasured=(), notes=("Chosen for quality.",),
    )  # fmt: skip


def checks(runner: str, size: Verdict, latency: Verdict) -> tuple[Check, ...]:
    seen = None if latency is Verdict.UNMEASURED else 0.31
    return (
        Check(name="size_mb", verdict=size, unit="MB", measured=1.98, limit=8, provenance=Provenance.COMPUTED),
        Check(name="latency_p95_ms", verdict=latency, unit="ms", measured=seen, limit=10, note=f"by {runner}"),
        Check(name="retained_min", verdict=Verdict.PASS, unit="", measured=0.985, limit=0.97,
              provenance=Provenance.MEASURED),
    )  # fmt: skip


def make(
    *, name: str = "Student int8", runner: str = "adb", size: Verdict = Verdict.PASS,
    latency: Verdict = Verdict.UNMEASURED,
) -> ReportData:  # fmt: skip
    parity = Parity(
        rows=1000, tensors=23, codes_max_difference=0, scales_max_difference=0, logits_max_abs=0.03,
        logits_reference_max_abs=11.8, mean_kl=3e-6, argmax_agreement=0.9996, accuracy_file=0.921,
        accuracy_reference=0.922,
    )  # fmt: skip
    manifest = Manifest(
        edgedistill_version="0.1.0", target={}, profile={}, plan={}, data={"source": name, "labels": 77},
        lineage=({"what": "teacher", "name": name},), licences=({"name": name, "licence": "Apache-2.0"},),
        libraries={"torch": "2.13.0"}, files={},
        artifacts=(Artifact(path="m.tflite", format="tflite", sha256=SHA, size_mb=1.98),),
        teacher_quality=quality(935), float_quality=quality(924), artifact_quality=quality(921),
        parity={"tflite": parity},
    )  # fmt: skip
    ledger = (
        LedgerRow(name="Teacher", parameters=22_713_216, size_mb=22.9, quality=quality(935), latency_p50_ms=8.9),
        LedgerRow(name=name, parameters=1_912_330, size_mb=1.98, quality=quality(921), latency_p50_ms=0.283,
                  latency_p95_ms=0.31, peak_memory_mb=45.2, runtime="LiteRT", note=name),
        LedgerRow(name="Baseline", parameters=10, size_mb=None, quality=quality(861)),
    )  # fmt: skip
    points = tuple((step, 4.0 / (1 + step / 100)) for step in range(0, 5000, 10))
    return ReportData(
        manifest=manifest, plan=plan(runner), ledger=ledger, shipped=name,
        gate=GateResult(target="pixel8", checks=checks(runner, size, latency)),
        measurements={"Teacher": measurement(8.9), name: measurement(0.283)},
        curves=(Curve(stage=name, points=points),),
        splits=(Split(name="train", rows=9003, dropped_duplicates=14, note=name),), exit_code=0,
    )  # fmt: skip
