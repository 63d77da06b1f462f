"""The public call: what it accepts, what it says of how it knows, and that it behaves as physics does."""

from __future__ import annotations

import subprocess
import sys
from math import inf, nan
from typing import Any

import pytest

import edgedistill
from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.predict import (
    DeviceSpecs,
    Forecast,
    LlmWorkload,
    Workload,
    predict,
    predict_all,
    resolve,
    tables,
)
from edgedistill.predict.cores import parse_cores
from edgedistill.predict.devices import measured_devices, soc_key

VISION: dict[str, Any] = {
    "gmacs": 0.6,
    "dw_gmacs": 0.02,
    "params_m": 5.0,
    "act_in_m": 8.0,
    "act_out_m": 7.0,
    "n_ops": 60,
}
PHONE = DeviceSpecs(
    name="phone", cpu="1xX3@2.9 + 4xA715@2.4 + 3xA510@1.8", memory_bandwidth_gb_per_s=60.0, npu_int8_tops=40.0
)
UNITS: list[dict[str, Any]] = [
    {"runtime": "litert", "unit": "cpu", "precision": "fp32"},
    {"runtime": "litert", "unit": "cpu", "precision": "dynamic_int8"},
    {"runtime": "litert", "unit": "cpu", "precision": "int8"},
    {"runtime": "litert", "unit": "gpu", "precision": "fp16"},
    {"runtime": "ncnn", "unit": "cpu", "precision": "fp32", "threads": 4},
    {"runtime": "ncnn", "unit": "cpu", "precision": "int8"},
    {"runtime": "qnn", "unit": "npu", "precision": "float"},
    {"runtime": "qnn", "unit": "npu", "precision": "w8a8"},
    {"runtime": "litert", "unit": "npu", "precision": "w8a16"},
    {"runtime": "coreml", "unit": "npu", "precision": "fp16"},
]


def sound(found: Forecast) -> None:
    assert 0 < found.low <= found.median <= found.high
    assert found.confidence == 0.8
    assert found.method.split(":")[0]
    assert found.unit
    assert all(value >= 0 for value in found.terms.values())


def test_the_module_is_the_call() -> None:
    work = Workload(**VISION)
    assert callable(edgedistill.predict)
    assert edgedistill.predict("pixel8", work) == predict("pixel8", work)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: " ".join(map(str, unit.values())))
def test_terms_add_up_and_more_work_never_takes_less(unit: dict[str, Any]) -> None:
    before = predict(PHONE, Workload(**VISION, **unit))
    sound(before)
    assert sum(before.terms.values()) == pytest.approx(before.median)
    for field in ("gmacs", "params_m", "n_ops", "act_in_m"):
        more = predict(PHONE, Workload(**{**VISION, field: 2 * VISION[field]}, **unit))
        assert more.median >= before.median * (1 - 1e-9), field


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: " ".join(map(str, unit.values())))
def test_macs_alone_are_enough_and_more_of_them_never_take_less(unit: dict[str, Any]) -> None:
    times = [predict(PHONE, Workload(gmacs=gmacs, **unit)) for gmacs in (0.02, 0.1, 0.5, 2.0, 10.0, 50.0)]
    for one in times:
        sound(one)
    assert [one.median for one in times] == sorted(one.median for one in times)
    assert any("told from" in flag for flag in times[0].flags)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: " ".join(map(str, unit.values())))
def test_a_faster_chip_is_never_slower(unit: dict[str, Any]) -> None:
    rates = [(1.0, 15.0, 8.0), (2.0, 30.0, 20.0), (3.0, 60.0, 45.0), (4.0, 90.0, 90.0)]
    devices = [
        DeviceSpecs(cpu=f"4xX3@{ghz}", memory_bandwidth_gb_per_s=bandwidth, npu_int8_tops=tops)
        for ghz, bandwidth, tops in rates
    ]
    times = [predict(device, Workload(**VISION, **unit)).median for device in devices]
    assert times == sorted(times, reverse=True)


def test_each_level_is_reached_and_says_so() -> None:
    known = {"runtime": "litert", "unit": "cpu", "precision": "fp32"}
    exact = predict("pixel9_pro", Workload(model="resnet50", **known))
    assert (exact.level, exact.median) == ("exact row", 119.008)
    scaled = predict("rpi5", Workload(model="resnet50", **known))
    assert scaled.level == "scaled from another device"
    fitted = predict("pixel9_pro", Workload(**VISION, **known))
    assert fitted.level == "fitted"
    assert predict(PHONE, Workload(**VISION, **known)).level == "spec only"


def test_a_phone_with_the_same_chip_stands_in() -> None:
    """Galaxy S25 has no rows; the reference phone of its chip has."""
    found = predict("galaxy_s25", Workload(model="mobilenet_v2", runtime="litert", unit="npu", precision="float"))
    assert "Snapdragon 8 Elite QRD" in found.method
    twin = predict("Snapdragon 8 Elite QRD", Workload(model="mobilenet_v2", unit="npu", precision="float"))
    assert found.low < twin.median < found.high


def test_every_target_and_every_measured_device_is_known() -> None:
    for name in [*catalog.target_names(), *measured_devices()]:
        assert resolve(name).name
        sound(predict(name, Workload(**VISION)))


def test_outside_the_calibrated_range_is_flagged_and_wider() -> None:
    def width(found: Forecast) -> float:
        return found.high / found.low

    inside = predict("pixel9_pro", Workload(**VISION))
    outside = predict("pixel9_pro", Workload(gmacs=5000.0, params_m=5.0, act_in_m=8.0, act_out_m=7.0, n_ops=60))
    assert not inside.flags
    assert any("outside the calibrated range" in flag for flag in outside.flags)
    assert width(outside) > 1.5 * width(inside)


def test_partial_delegation_sums_the_partitions() -> None:
    """ViT on the GPU of Galaxy S25 Ultra ran 28 of 400 nodes there: 313 ms, its CPU 321 ms."""
    options = {"model": "vit_base_patch16_224", "precision": "fp16"}
    whole, none = Workload(unit="gpu", **options), Workload(unit="cpu", **options)
    part = predict("galaxy_s25_ultra", whole.model_copy(update={"delegated": 0.07}))
    ends = [predict("galaxy_s25_ultra", one).median for one in (whole, none)]
    assert part.median == pytest.approx(0.07 * ends[0] + 0.93 * ends[1])
    assert part.median == pytest.approx(313, rel=0.1)


def test_missing_facts_are_named_and_what_can_be_said_is_said() -> None:
    found = predict(DeviceSpecs(), Workload(**VISION))
    assert found.missing
    assert any("not stated" in flag for flag in found.flags)
    with pytest.raises(SpecError, match="battery_wh is not stated"):
        predict("rpi5", Workload(**VISION), "energy_mj")
    assert "energy_mj" not in {one.quantity for one in predict_all("rpi5", Workload(**VISION))}
    assert "energy_mj" in {one.quantity for one in predict_all("pixel8", Workload(**VISION))}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gmacs": -1}, "gmacs"),
        ({"gmacs": "0.3 GMAC"}, "gmacs"),
        ({}, "needs `model`"),
        ({"gmacs": 0.1, "dw_gmacs": 0.2}, "more than gmacs"),
        ({"gmacs": 0.1, "macs": 3}, "unknown key 'macs'"),
        ({"gmacs": 0.1, "unit": "dsp"}, "unit"),
        ({"gmacs": 0.1, "delegated": 1.5}, "delegated"),
        ({"gmacs": float("inf")}, "gmacs"),
    ],
)
def test_wrong_workloads_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Workload.decode(values, where="workload")


@pytest.mark.parametrize(
    ("device", "work", "message"),
    [
        ("pixl8", {"gmacs": 1.0}, "did you mean 'pixel8'"),
        ("pixel8", {"model": "mobilenet_v22"}, "did you mean 'mobilenet_v2"),
        ("pixel8", {"gmacs": 1.0, "precision": "banana"}, "precisions"),
        ("pixel8", {"gmacs": 1.0, "runtime": "tensorrt", "unit": "gpu"}, "runtimes"),
        (DeviceSpecs(cpu="eight cores"), {"gmacs": 1.0}, "count, core, GHz"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(device: Any, work: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        predict(device, Workload(**work))


def test_a_row_of_the_feature_table_is_a_workload() -> None:
    row = {"key": "x", "arch": "x", "res": "224", "gmacs": "0.3", "params_m": "3.5", "n_ops": "", "set": "s"}
    assert Workload.from_row(row, precision="fp32").res == 224
    with pytest.raises(SpecError, match="gmacs"):
        Workload.from_row({"gmacs": "many"})


def test_quantities() -> None:
    for found in predict_all("pixel9_pro", Workload(**VISION, peak_act_m=1.0, file_mb=20.0)):
        sound(found)
    burst, long = (predict("pixel9_pro", Workload(**VISION), name) for name in ("latency_ms", "sustained_latency_ms"))
    assert long.median == pytest.approx(burst.median / 0.7)
    each = predict("pixel9_pro", Workload(**VISION), "energy_mj")
    hour = predict("pixel9_pro", Workload(**VISION), "battery_percent_per_hour", per_hour=36_000)
    assert hour.median == pytest.approx(100 * each.median * 36_000 / (18.1 * 3.6e6))
    with pytest.raises(SpecError, match="did you mean 'latency_ms'"):
        predict("pixel8", Workload(**VISION), "latency")
    for wrong in (-1, None, inf, nan, 1e300, "3600"):
        with pytest.raises(SpecError, match="per_hour"):
            predict("pixel8", Workload(**VISION), "battery_percent_per_hour", per_hour=wrong)  # type: ignore[arg-type]


def test_language_models() -> None:
    small, large = LlmWorkload(params_b=1.2), LlmWorkload(params_b=3.2)
    for device in ("Samsung Galaxy S23", "pixel8", "galaxy_s26", "rpi5", PHONE):
        for found in predict_all(device, small):
            sound(found)
        for phase in ("decode_tokens_per_s", "prefill_tokens_per_s"):
            assert predict(device, large, phase).median < predict(device, small, phase).median
        assert predict(device, large, "peak_memory_mb").median > predict(device, small, "peak_memory_mb").median
    fitted = predict("Samsung Galaxy S23", small)
    assert (fitted.level, fitted.unit) == ("fitted", "tokens/s")
    first = predict("Samsung Galaxy S23", small, "first_token_ms")
    assert first.median == pytest.approx(256e3 / predict("Samsung Galaxy S23", small, "prefill_tokens_per_s").median)
    with pytest.raises(SpecError, match="unknown quantization"):
        predict("pixel8", LlmWorkload(params_b=1.0, quant="xyz"))
    with pytest.raises(SpecError, match="unknown model"):
        predict("pixel8", LlmWorkload(model="nothing-like-it"))


def test_key_value_cache_and_compute_buffer_match_llama_cpp() -> None:
    """Qwen2.5-1.5B at 2048 tokens: 56 MiB of keys and values, 302.75 MiB of compute buffer."""
    terms = predict("pixel8", LlmWorkload(model="qwen2.5-1.5b"), "peak_memory_mb").terms
    assert terms["kv_mb"] == pytest.approx(56 * 1.048576, rel=0.01)
    assert terms["compute_mb"] == pytest.approx(302.75 * 1.048576, rel=0.02)
    assert terms["weights_mb"] == pytest.approx(1123, rel=0.02)


def test_names_of_chips_and_cores() -> None:
    assert soc_key("Snapdragon 8 Gen 2 for Galaxy") == soc_key("Qualcomm Snapdragon 8 Gen 2") == "snapdragon 8 gen 2"
    assert soc_key("Apple A15") == soc_key("A15 Bionic (5-core GPU)")
    assert soc_key("Google Tensor G1 (GS101)") == "google tensor g1"
    assert [core.gflops for core in parse_cores("2xCortex-X1@2.80 + 4xA55@1.80")] == pytest.approx([89.6, 14.4])
    assert parse_cores("Cortex-A76 2.4GHz x 4")[0].cores == 4


def test_corrupt_coefficients_are_refused(tmp_path: Any) -> None:
    path = tmp_path / "coefficients.json"
    for text in ("{", "[]", '{"schema_version": 99}'):
        path.write_text(text)
        with pytest.raises(SpecError, match=r"coefficients\.json"):
            tables.coefficients(path)
        tables.coefficients.cache_clear()


def test_no_numpy_is_imported() -> None:
    code = (
        "from edgedistill import predict; from edgedistill.predict import Workload; import sys;"
        "predict('pixel8', Workload(model='resnet50', unit='npu', precision='int8'));"
        "print([m for m in ('numpy', 'torch', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
