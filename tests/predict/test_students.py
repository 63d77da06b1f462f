"""Own measurements of students: forecasts of those that were no anchors get nearer, by size and the right way round."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from statistics import mean

import pytest

from edgedistill.errors import SpecError
from edgedistill.plan.cost import workload
from edgedistill.predict import Anchor, Calibration, Workload, calibrate_device, predict
from edgedistill.specs import QuantScheme
from edgedistill.students import bert

SHAPES = [(1, 64), (2, 64), (1, 128), (2, 128), (4, 128), (2, 192), (2, 256), (4, 256), (3, 384)]
ANCHORS = ((1, 64), (2, 128), (4, 256))
# How a device that nobody measured differs from its forecast: what a layer, a score and a multiply-accumulate take.
DEVICES = {
    "all twice as slow": dict.fromkeys(("start_ms", "operators_ms", "attention_ms", "macs_ms", "memory_ms"), 2.0),
    "dear operators": {"operators_ms": 6.0, "attention_ms": 3.0, "macs_ms": 1.2},
    "fast arithmetic": {"macs_ms": 0.5, "memory_ms": 0.6},
}


def student(layers: int, width: int) -> Workload:
    config = bert.Config(
        layers=layers, width=width, heads=width // 32, ffn=4 * width, vocabulary=3000, max_length=64, classes=77
    )
    return workload(bert, config, QuantScheme(), 64, file_bytes=round(bert.parameters(config) * 1.1), signatures=3)


def takes(work: Workload, device: Mapping[str, float]) -> float:
    """What the other device takes, ms."""
    return sum(value * device.get(name, 1.0) for name, value in predict("pixel8", work).terms.items())


def anchored(device: Mapping[str, float], noise: float = 0.0) -> Calibration:
    seen = [(student(*shape), 1 + noise * (-1) ** n) for n, shape in enumerate(ANCHORS)]
    anchors = [Anchor(workload=work, measured=takes(work, device) * off) for work, off in seen]
    return calibrate_device("pixel8", anchors, runtime_build="litert 2.3.0")


@pytest.mark.parametrize("name", DEVICES)
def test_three_anchors_bring_students_of_other_sizes_nearer(name: str) -> None:
    own = anchored(DEVICES[name], noise=0.03)
    others = [student(*shape) for shape in SHAPES if shape not in ANCHORS]
    before = mean(abs(log(takes(work, DEVICES[name]) / predict("pixel8", work).median)) for work in others)
    told = [predict("pixel8", work, calibration=own) for work in others]
    after = mean(abs(log(takes(work, DEVICES[name]) / one.median)) for work, one in zip(others, told, strict=True))
    assert before > 0.2
    assert after < 0.35 * before
    assert after < 0.12
    for work, one in zip(others, told, strict=True):
        assert one.level == "calibrated"
        assert one.low < takes(work, DEVICES[name]) < one.high
        plain = predict("pixel8", work)
        assert one.high / one.low < plain.high / plain.low
        assert sum(one.terms.values()) == pytest.approx(one.median)


def test_what_follows_from_latency_follows_its_calibration() -> None:
    own, work = anchored(DEVICES["all twice as slow"]), student(2, 192)
    plain, now = ({name: predict("pixel8", work, name, calibration=one, per_hour=3600).median for name in
                   ("latency_ms", "energy_mj", "sustained_latency_ms", "battery_percent_per_hour", "peak_memory_mb",
                    "first_load_ms")} for one in (None, own))  # fmt: skip
    slower = now["latency_ms"] / plain["latency_ms"]
    assert slower == pytest.approx(2, rel=0.1)
    for name in ("energy_mj", "sustained_latency_ms", "battery_percent_per_hour"):
        assert now[name] / plain[name] == pytest.approx(slower)
    for name in ("peak_memory_mb", "first_load_ms"):
        assert now[name] == plain[name]


def test_memory_and_energy_have_factors_of_their_own() -> None:
    work = student(2, 128)
    plain = {name: predict("pixel8", work, name).median for name in ("peak_memory_mb", "energy_mj", "latency_ms")}
    known = [student(*shape) for shape in ANCHORS]
    off = {"peak_memory_mb": 1.3, "energy_mj": 0.5}
    told = [(one, name, predict("pixel8", one, name).median) for one in known for name in off]
    anchors = [Anchor(workload=one, quantity=name, measured=off[name] * value) for one, name, value in told]
    own = calibrate_device("pixel8", anchors, runtime_build="litert 2.3.0")
    now = {name: predict("pixel8", work, name, calibration=own).median for name in plain}
    assert now["peak_memory_mb"] / plain["peak_memory_mb"] == pytest.approx(1.3, rel=0.05)
    assert now["energy_mj"] / plain["energy_mj"] == pytest.approx(0.5, rel=0.05)
    assert now["latency_ms"] == plain["latency_ms"]


def test_an_anchor_of_what_no_bench_measures_is_refused() -> None:
    with pytest.raises(SpecError, match="of a student give latency_ms, peak_memory_mb or energy_mj"):
        calibrate_device("pixel8", [Anchor(workload=student(1, 64), measured=1, quantity="first_load_ms")],
                         runtime_build="x")  # fmt: skip


def test_what_follows_from_own_energy_says_so() -> None:
    work = student(2, 128)
    own = calibrate_device("pixel8", [Anchor(workload=work, measured=1.0, quantity="energy_mj")], runtime_build="mine")
    told = predict("pixel8", work, "battery_percent_per_hour", calibration=own, per_hour=3600)
    assert told.median > 1.5 * predict("pixel8", work, "battery_percent_per_hour", per_hour=3600).median
    assert (told.level, told.method.endswith("by 1 own measurements (mine)")) == ("calibrated", True)
    both = calibrate_device("pixel8", [Anchor(workload=work, measured=1.0, quantity="energy_mj"),
                                       Anchor(workload=work, measured=0.3)], runtime_build="mine")  # fmt: skip
    energy = f"x{both.factors['student energy_mj']:.2f} by 1"
    assert energy in predict("pixel8", work, "battery_percent_per_hour", calibration=both, per_hour=3600).method


@pytest.mark.parametrize("precision", ["int4", "fp16", "w8a16", "banana"])
def test_a_precision_that_no_student_has_is_not_taken_for_fp32(precision: str) -> None:
    with pytest.raises(SpecError, match="a student's are fp32, int8 and dynamic_int8"):
        predict("pixel8", student(1, 64).model_copy(update={"precision": precision}))


def test_a_student_in_fp32_gains_nothing_by_int8_and_says_nothing_of_it() -> None:
    integers = student(2, 128)
    floats = predict("pixel8", integers.model_copy(update={"precision": "fp32"}))
    assert floats.median > predict("pixel8", integers).median
    assert "int8" in predict("pixel8", integers).method
    assert "int8" not in floats.method
