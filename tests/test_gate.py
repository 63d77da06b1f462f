"""The gate's verdicts: every line, both sides of its limit, and what must never count."""

from __future__ import annotations

import ast
import math
import random
from pathlib import Path

import pytest

import edgedistill.gate
from edgedistill.errors import GateFailed, NotDecided, StageError
from edgedistill.gate import GateFacts, accuracy_line, exit_error, gate, p95_bounds, pair
from edgedistill.specs import (
    Artifact,
    Budget,
    Check,
    ComputeUnit,
    Energy,
    Fingerprint,
    GateResult,
    Measurement,
    PairedCounts,
    Parity,
    Prediction,
    Provenance,
    Quality,
    QualityFloor,
    Target,
    Verdict,
)

SHA = "ab" * 32
P, F, OPEN, U = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNMEASURED


def target(runner: str = "adb", threads: int = 1) -> Target:
    cpu = ComputeUnit(kind="cpu", name="cpu")
    return Target(
        name="device", title="Some Device", soc="soc", os="linux", ram_mb=4000, formats=("tflite",), runner=runner,
        threads=threads, compute_units=(cpu,), source="made up",
    )  # fmt: skip


def measured(
    launches: list[list[float]] | None = None, *, sha: str = SHA, peak: float = 50.0, threads: int = 1,
    provenance: Provenance = Provenance.MEASURED,
) -> Measurement:  # fmt: skip
    launches = launches or [[1.0] * 100] * 3
    return Measurement(
        artifact_sha256=sha, provenance=provenance, device="host", runtime="rt", signature="s", threads=threads,
        samples_ms=tuple(value for launch in launches for value in launch),
        launch_counts=tuple(len(launch) for launch in launches), launch_medians_ms=(), first_inference_ms=1.0,
        load_ms=1.0, peak_memory_mb=peak, baseline_memory_mb=40.0, context={},
    )  # fmt: skip


def quality(correct: int, rows: int = 1000) -> Quality:
    return Quality(accuracy=correct / rows, low=0.0, high=1.0, correct=correct, rows=rows)


def facts(*, size: float = 2.0, teacher: int = 900, file: int = 880, **others: object) -> GateFacts:
    parity = Parity(
        rows=1000, tensors=20, codes_max_difference=0, scales_max_difference=0.0, logits_max_abs=0.01,
        logits_reference_max_abs=9.0, mean_kl=1e-6, argmax_agreement=0.999, accuracy_file=0.88, accuracy_reference=0.88,
    )  # fmt: skip
    artifact = Artifact(path="model.tflite", format="tflite", sha256=SHA, size_mb=size)
    base = GateFacts(artifact=artifact, teacher=quality(teacher), file=quality(file), parity=parity)
    return base.model_copy(update=others)


def line(result: GateResult, name: str) -> Check:
    return next(check for check in result.checks if check.name == name)


def verdict(name: str, where: Target, budget: Budget, seen: GateFacts, floor: QualityFloor | None = None) -> Verdict:
    return line(gate(where, budget, floor or QualityFloor(), seen), name).verdict


@pytest.mark.parametrize(("limit", "expected"), [(2.0, P), (2.0001, P), (1.9999, F)])
def test_size_is_decided_exactly(limit: float, expected: Verdict) -> None:
    assert verdict("size_mb", target(), Budget(size_mb=limit), facts(size=2.0)) is expected


@pytest.mark.parametrize(
    ("floor", "file", "expected"),
    [({"retained_min": 0.97}, 873, P), ({"retained_min": 0.97}, 872, F), ({"accuracy_min": 0.88}, 880, P),
     ({"accuracy_min": 0.88}, 879, F)],
)  # fmt: skip
def test_quality_is_decided_on_the_point_value(floor: dict[str, float], file: int, expected: Verdict) -> None:
    name = next(iter(floor))
    assert verdict(name, target(), Budget(), facts(file=file), QualityFloor(**floor)) is expected


@pytest.mark.parametrize(
    ("change", "name"),
    [({"codes_max_difference": 1}, "codes_max_difference"), ({"scales_max_difference": 1e-9}, "scales_max_difference"),
     ({"argmax_agreement": 0.994}, "argmax_agreement_min")],
)  # fmt: skip
def test_a_file_that_is_not_what_was_trained_fails(change: dict[str, float], name: str) -> None:
    good = facts()
    bad = good.model_copy(update={"parity": good.parity.model_copy(update=change)})
    assert verdict(name, target(), Budget(), good) is P
    assert verdict(name, target(), Budget(), bad) is F


@pytest.mark.parametrize("name", ["latency_p95_ms", "peak_memory_mb", "energy_mj"])
@pytest.mark.parametrize("runner", ["adb", "ssh", "ios"])
def test_a_host_figure_never_stands_in_for_a_device(name: str, runner: str) -> None:
    """However small the host's figures and the predictions are, and however large: not measured is not measured."""
    prediction = Prediction(
        quantity=name, unit="ms", median=0.1, low=0.01, high=0.2, confidence=0.8, method="m", terms={}
    )
    for samples in ([[1e-6] * 100] * 3, [[1e6] * 100] * 3):
        seen = facts(host=measured(samples, peak=1.0), predictions=(prediction,))
        check = line(gate(target(runner), Budget(**{name: 1000.0}), QualityFloor(), seen), name)
        assert (check.verdict, check.measured, check.provenance) == (U, None, None)
        assert "predicted 0.1 ms, 80% interval 0.01 to 0.2" in check.note


def test_energy_is_unmeasured_even_on_the_host() -> None:
    assert verdict("energy_mj", target("host"), Budget(energy_mj=5.0), facts(host=measured())) is U


@pytest.mark.parametrize(
    "host", [None, measured(provenance=Provenance.EMULATED), measured(provenance=Provenance.PREDICTED)]
)
def test_host_target_without_a_measurement_is_unmeasured(host: Measurement | None) -> None:
    assert verdict("latency_p95_ms", target("host"), Budget(latency_p95_ms=5.0), facts(host=host)) is U


PHONE = Fingerprint(
    runner="adb", device_id="ab" * 32, model="Google Pixel 8", os_build="b", cpu="c", machine="aarch64", runtime="rt",
    runtime_version="1", threads=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"fingerprint": PHONE.model_copy(update={"model": "Google Pixel 8 Pro"})}, "not known to be"),
        ({"fingerprint": PHONE.model_copy(update={"runner": "ssh"})}, "not known to be"),
        ({"fingerprint": None}, "no Some Device was measured"),
        ({"provenance": Provenance.EMULATED}, "emulated"),
        ({"threads": 2}, "2 threads"),
    ],
)
def test_only_a_measurement_of_the_device_itself_counts(change: dict[str, object], told: str) -> None:
    phone = target("adb").model_copy(update={"models": ("Google Pixel 8",)})
    metered = Energy(energy_mj=3.0, source="rails", resolution_mj=0.5)
    seen = measured(peak=50.0).model_copy(update={"fingerprint": PHONE, "energy": metered, **change})
    limits = {"latency_p95_ms": 5.0, "peak_memory_mb": 60.0, "energy_mj": 4.0}
    result = gate(phone, Budget(**limits), QualityFloor(), facts(host=seen))
    for name in limits:
        check = line(result, name)
        assert check.verdict is (U if told else P)
        assert told in check.note
    nameless = gate(target("adb"), Budget(**limits), QualityFloor(), facts(host=seen))
    assert line(nameless, "latency_p95_ms").verdict is U


@pytest.mark.parametrize(("limit", "expected"), [(3.5, P), (3.2, OPEN), (2.6, OPEN), (2.4, F)])
def test_energy_is_decided_to_within_what_the_meter_shows(limit: float, expected: Verdict) -> None:
    metered = measured().model_copy(update={"energy": Energy(energy_mj=3.0, source="rails", resolution_mj=0.5)})
    assert verdict("energy_mj", target("host"), Budget(energy_mj=limit), facts(host=metered)) is expected
    bounded = Energy(energy_mj=3.0, low_mj=2.5, high_mj=3.5, resolution_mj=0.01, source="INA3221", covers="VDD_IN")
    known = measured().model_copy(update={"energy": bounded})
    assert verdict("energy_mj", target("host"), Budget(energy_mj=limit), facts(host=known)) is expected
    told = line(gate(target("host"), Budget(energy_mj=limit), QualityFloor(), facts(host=known)), "energy_mj")
    assert told.note == "2.5 to 3.5 mJ by INA3221, VDD_IN"
    unmetered = measured().model_copy(update={"energy": Energy(energy_mj=None, note="it was charging")})
    check = line(gate(target("host"), Budget(energy_mj=limit), QualityFloor(), facts(host=unmetered)), "energy_mj")
    assert (check.verdict, check.measured) == (U, None)
    assert "it was charging" in check.note


def test_a_tool_without_samples_bounds_no_percentile() -> None:
    seen = measured().model_copy(update={"samples_ms": (), "launch_counts": ()})
    assert verdict("latency_p95_ms", target("host"), Budget(latency_p95_ms=5.0), facts(host=seen)) is U


def test_a_measurement_with_other_threads_does_not_count() -> None:
    seen = facts(host=measured(threads=2))
    assert verdict("latency_p95_ms", target("host", threads=1), Budget(latency_p95_ms=5.0), seen) is U
    assert verdict("latency_p95_ms", target("host", threads=2), Budget(latency_p95_ms=5.0), seen) is P


def noisy(seed: int, spread: float, launches: int = 3, count: int = 200) -> list[list[float]]:
    drawn = random.Random(seed)
    shifts = [drawn.gauss(0, spread) for _ in range(launches)]
    return [[math.exp(shift + drawn.gauss(0, 0.02)) for _ in range(count)] for shift in shifts]


@pytest.mark.parametrize(
    ("launches", "limit", "expected"),
    [
        (noisy(1, 0.01), 2.0, P),
        (noisy(1, 0.01), 0.5, F),
        (noisy(1, 0.05), 1.03, OPEN),
        (noisy(1, 0.01, launches=2), 2.0, OPEN),  # too few launches, however clear
        (noisy(1, 0.01, count=20), 2.0, OPEN),  # too few inferences
    ],
)
def test_latency_verdict(launches: list[list[float]], limit: float, expected: Verdict) -> None:
    seen = facts(host=measured(launches))
    assert verdict("latency_p95_ms", target("host"), Budget(latency_p95_ms=limit), seen) is expected


def test_samples_whose_launches_are_unknown_decide_nothing() -> None:
    host = measured(noisy(1, 0.01)).model_copy(update={"launch_counts": ()})
    assert verdict("latency_p95_ms", target("host"), Budget(latency_p95_ms=99.0), facts(host=host)) is OPEN


def test_p95_bounds_hold_as_often_as_they_say() -> None:
    """The upper bound is at 97.5 %: of 200 simulated measurements it may miss 5, and 12 with luck of 1 in 1000."""
    typical = math.exp(0.02 * 1.6449)
    bounds = [p95_bounds(measured(noisy(seed, 0.04))) for seed in range(200)]
    assert sum(high < typical for _, high in bounds) <= 12
    assert sum(low > typical for low, _ in bounds) <= 12


def test_p95_bounds_know_the_noise_between_launches() -> None:
    calm, wild = p95_bounds(measured(noisy(3, 0.001))), p95_bounds(measured(noisy(3, 0.1)))
    assert math.log(wild[1] / wild[0]) > 10 * math.log(calm[1] / calm[0])
    host = measured(noisy(3, 0.1))
    assert wild[0] <= host.latency_p95_ms <= wild[1]


@pytest.mark.parametrize(("peak", "limit", "expected"), [(50, 50, P), (50, 20, OPEN), (70, 20, F), (70, 29.9, F)])
def test_memory_lies_between_what_the_file_added_and_the_whole_process(
    peak: float, limit: float, expected: Verdict
) -> None:
    assert verdict("peak_memory_mb", target("host"), Budget(peak_memory_mb=limit), facts(host=measured(peak=peak))) is (
        expected
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"host": measured(sha="cd" * 32)},
        {"file": quality(88, rows=100)},
        {"paired": PairedCounts(both=1, only_file=1, only_teacher=1, neither=1)},
        {"teacher": quality(0)},
    ],
)
def test_facts_that_contradict_each_other_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(StageError):
        gate(target("host"), Budget(), QualityFloor(retained_min=0.9), facts().model_copy(update=bad))


def test_zero_tensors_read_back_is_no_pass() -> None:
    seen = facts()
    with pytest.raises(StageError, match="no tensor"):
        gate(target(), Budget(), QualityFloor(), seen.model_copy(update={
            "parity": seen.parity.model_copy(update={"tensors": 0})}))  # fmt: skip


def test_paired_interval() -> None:
    assert pair([True, True, False, False], [True, False, True, False]) == PairedCounts(
        both=1, only_file=1, only_teacher=1, neither=1
    )
    same = PairedCounts(both=90, only_file=0, only_teacher=0, neither=10).retained_interval()
    assert same == (1.0, 1.0)  # answers that never differ leave nothing uncertain
    low, high = PairedCounts(both=850, only_file=10, only_teacher=30, neither=110).retained_interval() or (0, 0)
    drawn = random.Random(0)
    rows = [(1, 1)] * 850 + [(1, 0)] * 10 + [(0, 1)] * 30 + [(0, 0)] * 110
    ratios = []
    for _ in range(1000):
        again = drawn.choices(rows, k=len(rows))
        ratios.append(sum(file for file, _ in again) / sum(teacher for _, teacher in again))
    ratios.sort()
    assert low == pytest.approx(ratios[25], abs=0.003)
    assert high == pytest.approx(ratios[-25], abs=0.003)
    assert PairedCounts(both=0, only_file=0, only_teacher=3, neither=7).retained_interval() is None
    with pytest.raises(ValueError, match="shorter"):
        pair([True], [])


def test_only_limited_lines_are_judged_and_in_a_fixed_order() -> None:
    result = gate(target(), Budget(energy_mj=1.0, size_mb=5.0), QualityFloor(), facts())
    assert [check.name for check in result.checks] == [
        "size_mb", "energy_mj", "argmax_agreement_min", "codes_max_difference", "scales_max_difference",
    ]  # fmt: skip
    assert result == gate(target(), Budget(size_mb=5.0, energy_mj=1.0), QualityFloor(), facts())


def test_exit_error() -> None:
    passed = gate(target(), Budget(size_mb=5.0), QualityFloor(), facts())
    open_line = gate(target(), Budget(size_mb=5.0, energy_mj=1.0), QualityFloor(), facts())
    failed = gate(target(), Budget(size_mb=1.0, energy_mj=1.0), QualityFloor(), facts())
    assert exit_error(passed, strict=True) is None
    assert exit_error(open_line, strict=False) is None
    error = exit_error(open_line, strict=True)
    assert isinstance(error, NotDecided)
    assert "energy_mj: not measured, wanted ≤ 1 mJ" in str(error)
    for strict in (False, True):
        error = exit_error(failed, strict=strict)
        assert isinstance(error, GateFailed)
        assert "size_mb: 2 MB, wanted ≤ 1 MB" in str(error)
        assert "energy_mj" not in str(error)


@pytest.mark.parametrize(
    "path", sorted(Path(edgedistill.gate.__file__).parent.glob("*.py")), ids=lambda path: path.name
)
def test_the_gate_is_light(path: Path) -> None:
    tree = ast.parse(path.read_text())
    named = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    named |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not {name.split(".")[0] for name in named} & {"numpy", "torch", "scipy"}


def test_the_interval_of_two_files_on_the_same_rows_holds_as_often_as_it_says() -> None:
    """500 pairs of answers to 200 rows that agree on 95 %: paired it is half as wide, and covers what is true."""
    drawn, covered, paired_width, plain_width = random.Random(0), 0, 0.0, 0.0
    truth = 0.9 * 0.95 + 0.1 * 0.05 - 0.9
    for _ in range(500):
        a = [drawn.random() < 0.9 for _ in range(200)]
        b = [right if drawn.random() < 0.95 else not right for right in a]
        sides = Quality.wilson(sum(a), 200), Quality.wilson(sum(b), 200)
        line_, plain = (accuracy_line(*sides, same_rows=True, paired=counts) for counts in (pair(a, b), None))
        assert line_.low is not None
        assert line_.high is not None
        covered += line_.low <= truth <= line_.high
        paired_width += line_.high - line_.low
        plain_width += (plain.high or 0) - (plain.low or 0)
    assert 0.93 <= covered / 500 <= 0.99
    assert paired_width < 0.6 * plain_width
