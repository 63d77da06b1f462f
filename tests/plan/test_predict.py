"""What is predicted, how wide, and how well it does on rows that were measured by others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import edgedistill.predict
from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan import Workload, make_plan, predict
from edgedistill.specs import Prediction, Profile, Target

WORK: dict[str, Any] = {
    "macs": 30_000_000,
    "operators": 140,
    "linear_bytes": 400_000,
    "activation_bytes": 1_000_000,
    "peak_activation_bytes": 150_000,
    "file_bytes": 900_000,
    "signatures": 3,
    "activations": "dynamic_int8",
    "transformer": True,
}


def lines(target: str | Target, **changes: Any) -> dict[str, Prediction]:
    device = catalog.load_target(target) if isinstance(target, str) else target
    return {line.quantity: line for line in predict(device, Workload(**{**WORK, **changes}))}


@pytest.mark.parametrize("name", catalog.target_names())
def test_the_interval_contains_the_median_and_the_terms_explain_it(name: str) -> None:
    found = lines(name)
    assert {"latency_p95_ms", "peak_memory_mb"} <= set(found)
    for line in found.values():
        assert 0 < line.low < line.median < line.high
        assert 0 < line.confidence < 1
        assert line.method
    for quantity in ("latency_p95_ms", "peak_memory_mb"):
        assert sum(found[quantity].terms.values()) == pytest.approx(found[quantity].median)


@pytest.mark.parametrize("field", ["macs", "operators", "linear_bytes", "activation_bytes"])
def test_more_work_takes_longer(field: str) -> None:
    assert (
        lines("pixel8", **{field: 2 * WORK[field]})["latency_p95_ms"].median > lines("pixel8")["latency_p95_ms"].median
    )


def test_a_slower_core_takes_longer() -> None:
    order = ["galaxy_s25", "pixel8", "rpi5", "rpi4"]
    times = [lines(name)["latency_p95_ms"].median for name in order]
    assert times == sorted(times)


def test_static_int8_is_faster_than_dynamic() -> None:
    assert (
        lines("pixel8", activations="static_int8")["latency_p95_ms"].median < lines("pixel8")["latency_p95_ms"].median
    )


def test_a_transformer_is_open_above_only() -> None:
    with_penalty, without = lines("pixel8")["latency_p95_ms"], lines("pixel8", transformer=False)["latency_p95_ms"]
    assert with_penalty.high > without.high
    assert (with_penalty.low, with_penalty.median) == (without.low, without.median)


def test_work_beyond_what_was_measured_is_said_and_widens_the_interval() -> None:
    inside = lines("pixel8", macs=400_000_000)["latency_p95_ms"]
    outside = lines("pixel8", macs=4_360_000_000)["latency_p95_ms"]
    assert "outside" not in inside.method
    assert "4,360 million MACs are outside what was measured (0.01 to 436), interval widened" in outside.method
    assert outside.high / outside.median == pytest.approx(10**0.5 * inside.high / inside.median)
    assert outside.median / outside.low == pytest.approx(10**0.5 * inside.median / inside.low)
    assert "5e-06 million MACs are outside" in lines("pixel8", macs=5)["latency_p95_ms"].method


def test_without_facts_there_is_no_figure() -> None:
    target = catalog.load_target("pixel8")
    blind = target.cpu.model_copy(update={"one_core_fp32_gflops": None})
    assert set(lines(target.model_copy(update={"compute_units": (blind,)}))) == {"peak_memory_mb"}
    assert "energy_mj" not in lines("rpi5")  # no battery: only whole-phone power is published
    without = lines(target.model_copy(update={"memory_bandwidth_gb_per_s": None}))["latency_p95_ms"]
    assert "bandwidth not stated" in without.method


def test_threads_are_not_invented() -> None:
    many = catalog.load_target("pixel8").model_copy(update={"threads": 4})
    assert lines(many)["latency_p95_ms"].median == lines("pixel8")["latency_p95_ms"].median
    assert "of one thread" in lines(many)["latency_p95_ms"].method


def test_memory_agrees_with_published_measurements() -> None:
    """MiniLM fp32 with one and three signatures (measured), MobileNetV2 fp32 (AI Edge Portal, Pixel 9 Pro)."""
    mini = {"file_bytes": 90_500_000, "linear_bytes": 42_600_000, "peak_activation_bytes": 500_000}
    mobile = {"file_bytes": 13_980_000, "linear_bytes": 13_980_000, "peak_activation_bytes": 6_020_000}
    for changes, signatures, measured in ((mini, 1, 122.0), (mini, 3, 208.0), (mobile, 1, 38.6)):
        line = lines("pixel9_pro", signatures=signatures, **changes)["peak_memory_mb"]
        assert line.low < measured < line.high
        assert line.median == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(("activations", "signatures", "measured"), [
    ("dynamic_int8", 1, 44.0), ("dynamic_int8", 3, 45.7), ("float", 1, 46.9), ("float", 3, 54.1),
])  # fmt: skip
def test_weights_that_float_kernels_multiply_are_held_in_fp32_twice(
    activations: str, signatures: int, measured: float
) -> None:
    """The default student in each mode, MB of the whole process (bench/results/memory.md)."""
    sizes = {"file_bytes": 900_000, "linear_bytes": 403_072, "peak_activation_bytes": 130_000}
    line = lines("host", activations=activations, signatures=signatures, **sizes)["peak_memory_mb"]
    assert line.low < measured < line.high
    assert line.median == pytest.approx(measured, rel=0.01)


# model: 10^6 MACs, nodes of the graph, file in MB, elements read and written in 10^6, ms on the Galaxy S25 Ultra
# (CPU, fp32; latency.csv and model_features.csv of predict/data). The rows are fp32, so the gain of int8 is undone.
MEASURED = {
    "mobilenet_v2": (300.8, 70, 13.98, 14.96, 6.177),
    "resnet50": (4089.2, 78, 102.1, 38.39, 72.325),
    "squeezenet1_1": (349.2, 40, 4.955, 6.17, 5.922),
    "vit_base": (17563.8, 400, 346.2, 36.92, 321.087),
}


@pytest.mark.parametrize("model", MEASURED)
def test_a_phone_that_is_not_the_reference_lies_inside_the_interval(model: str) -> None:
    mmacs, operators, file_mb, elements, measured = MEASURED[model]
    line = lines(
        "galaxy_s25_ultra",
        macs=round(mmacs * 1e6 * 2.7),
        operators=operators,
        linear_bytes=round(file_mb * 1e6),
        activation_bytes=round(4e6 * elements),
        transformer=False,
    )["latency_p95_ms"]
    assert line.low < measured < line.high
    assert line.median == pytest.approx(measured, rel=0.35)


# Files of this project's exporter on the build machine (AMD EPYC, LiteRT 2.3.0, one thread), as its runner measured
# them: configuration, longest bucket, median ms, MB of the whole process.
ON_HOST = [
    ({"layers": 1, "width": 16, "heads": 2, "ffn": 32, "vocabulary": 120, "classes": 3}, [8, 16], 0.0102, 42.6),
    ({"layers": 2, "width": 128, "heads": 4, "ffn": 512, "vocabulary": 3000, "classes": 77}, [16, 32, 64], 0.283, 45.7),
    ({"layers": 3, "width": 192, "heads": 6, "ffn": 768, "vocabulary": 2000, "classes": 77}, [16, 32, 64], 0.735, 50.2),
]


@pytest.mark.parametrize(("config", "buckets", "latency_ms", "memory_mb"), ON_HOST)
def test_a_student_measured_on_the_host_lies_inside_the_intervals(
    profile: Callable[..., Profile], config: dict[str, int], buckets: list[int], latency_ms: float, memory_mb: float
) -> None:
    asked = profile(student={"candidates": [config], "buckets": buckets})
    told = {line.quantity: line for line in make_plan(catalog.load_target("host"), asked).chosen.predictions}
    latency, memory = told["latency_p95_ms"], told["peak_memory_mb"]
    assert latency.low < latency_ms < latency.high
    assert latency.median == pytest.approx(latency_ms, rel=0.35)
    assert memory.median == pytest.approx(memory_mb, rel=0.01)


@pytest.mark.parametrize("name", catalog.target_names())
def test_the_public_call_says_of_a_student_what_the_plan_says(name: str, profile: Callable[..., Profile]) -> None:
    """Also by the device's name, and of the JSON of a plan."""
    target = catalog.load_target(name)
    plan = make_plan(target, profile(student={"candidates": [ON_HOST[1][0]], "buckets": [16, 32, 64]}))
    stored = json.loads(plan.model_dump_json())["chosen"]["work"]
    called = {"latency_p95_ms": "latency_ms", "sustained_latency_p95_ms": "sustained_latency_ms"}
    for line in plan.chosen.predictions:
        quantity = called.get(line.quantity, line.quantity)
        for device, work in ((target, plan), (name, plan.chosen), (name, edgedistill.predict.Workload(**stored))):
            told = edgedistill.predict(device, work, quantity, per_hour=3600)
            assert (told.median, told.low, told.high, told.level) == (line.median, line.low, line.high, line.level)
            assert told.method == line.method
    assert {"latency_p95_ms", "peak_memory_mb", "first_load_ms"} <= {line.quantity for line in plan.chosen.predictions}


def test_a_student_on_another_unit_has_the_general_forecast(profile: Callable[..., Profile]) -> None:
    plan = make_plan(catalog.load_target("galaxy_s24"), profile(student={"candidates": [ON_HOST[1][0]]}))
    work = edgedistill.predict.Workload(**{**plan.chosen.work, "unit": "gpu"})
    assert "litert gpu float" in edgedistill.predict("galaxy_s24", work).method


def test_what_a_students_workload_lacks_is_named() -> None:
    with pytest.raises(SpecError, match="needs act_in_m, act_out_m, peak_act_m, operators, linear_m, file_mb"):
        edgedistill.predict("pixel8", edgedistill.predict.Workload(student=True, gmacs=0.03))
    with pytest.raises(SpecError, match=r"give a Workload.* or a plan"):
        edgedistill.predict("pixel8", "default")


def test_a_plan_of_an_earlier_version_is_made_again(profile: Callable[..., Profile]) -> None:
    plan = make_plan(catalog.load_target("pixel8"), profile(student={"candidates": [ON_HOST[1][0]]}))
    with pytest.raises(SpecError, match="plan again"):
        edgedistill.predict("pixel8", plan.chosen.model_copy(update={"work": {}}))


def test_forecasts_of_a_file_that_litert_does_not_run_say_so(profile: Callable[..., Profile]) -> None:
    asked = profile(student={"candidates": [ON_HOST[1][0]]})
    phone, other = catalog.load_target("pixel8"), catalog.load_target("iphone15")
    told = "iphone15: time, memory and energy are foretold of a .tflite on its CPU; how coreml runs there is not"
    assert any(note.startswith(told) for note in make_plan(other, asked).notes)
    assert not any("foretold of a .tflite" in note for note in make_plan(phone, asked).notes)


def test_lines_of_a_battery_are_those_of_devices_that_have_one() -> None:
    phone, board = lines("pixel8"), lines("rpi5")
    further = {"energy_mj", "sustained_latency_p95_ms", "battery_percent_per_hour"}
    assert set(phone) - set(board) == further
    assert {"latency_p95_ms", "peak_memory_mb", "first_load_ms"} == set(board)
    keep = phone["sustained_latency_p95_ms"].median / phone["latency_p95_ms"].median
    assert keep == pytest.approx(1 / 0.7, rel=0.01)
    hour = phone["energy_mj"].median * 3600 / 1e3 / (3600 * 17.61)  # J of 3600 inferences over J of the battery
    assert phone["battery_percent_per_hour"].median == pytest.approx(100 * hour)


def test_a_signature_more_is_packed_and_held_once_more() -> None:
    one, three = lines("pixel8", signatures=1), lines("pixel8", signatures=3)
    assert three["first_load_ms"].median > one["first_load_ms"].median
    more = three["peak_memory_mb"].median - one["peak_memory_mb"].median
    assert more == pytest.approx(2 * (0.4 + 140 * 0.003))  # MB: weights, and 3 kB for each operator
