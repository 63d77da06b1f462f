"""What physics demands of every answer, whatever is asked: drawn workloads, devices by a few facts, odd spellings."""

from __future__ import annotations

from math import isfinite
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgedistill.errors import SpecError
from edgedistill.predict import Anchor, DeviceSpecs, Forecast, LlmWorkload, Workload, predict, predict_all
from edgedistill.predict.llm_features import quant_of

CHECKS = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
SLACK = 1 + 1e-9  # rounding of sums

UNITS = st.sampled_from(
    [
        ("litert", "cpu", "fp32"), ("litert", "cpu", "dynamic_int8"), ("tflite", "cpu", "int8"),
        ("ncnn", "cpu", "fp16"), ("ncnn", "cpu", "int8"), ("ncnn", "gpu", "fp16"),
        ("LiteRT", "gpu", "FP16"), ("qnn", "npu", "W8A8"),
        ("qnn", "npu", "w8a16"), ("tflite", "npu", "float"), ("Core ML", "npu", "fp16"), ("paddle_lite", "cpu", "fp32"),
        ("onnxruntime", "cpu", "float32"), ("executorch", "cpu", "int8"),
    ]
)  # fmt: skip
DEVICES = st.sampled_from(
    [
        "pixel8", "galaxy_a14", "rpi5", "Samsung Galaxy S23", "iPhone 13", DeviceSpecs(), DeviceSpecs(npu_int8_tops=12),
        DeviceSpecs(one_core_fp32_gflops=40.0), DeviceSpecs(cpu="8xA55@2.0"), DeviceSpecs(soc="Snapdragon 8 Gen 3"),
        DeviceSpecs(cpu="2xFuture9@3.4 + 6xA520@2.0"), DeviceSpecs(memory_bandwidth_gb_per_s=25.6),
    ]
)  # fmt: skip


def amount(least: float, most: float) -> st.SearchStrategy[float]:
    return st.floats(least, most, allow_nan=False, allow_infinity=False)


@st.composite
def works(draw: st.DrawFn) -> dict[str, Any]:
    """A vision or encoder workload with any of its features left out."""
    runtime, unit, precision = draw(UNITS)
    gmacs = draw(amount(1e-4, 500.0))
    optional = {
        "dw_gmacs": amount(0.0, gmacs),
        "params_m": amount(1e-3, 1e3),
        "act_in_m": amount(0.0, 1e3),
        "act_out_m": amount(0.0, 1e3),
        "peak_act_m": amount(0.0, 100.0),
        "n_ops": amount(0, 1000),
        "res": amount(1, 2000),
        "file_mb": amount(0.01, 4000),
        "transformer": st.booleans(),
    }
    kept = draw(st.sets(st.sampled_from(sorted(optional))))
    values = {name: draw(optional[name]) for name in sorted(kept)}
    threads = draw(st.sampled_from([1, 2, 4, 8]))
    return {"gmacs": gmacs, "runtime": runtime, "unit": unit, "precision": precision, "threads": threads, **values}


QUANTS = ["Q4_0", "q4_k_m", "int4", "fp16", "IQ2_XS", "Q8_0", "q8", "INT8", "bf16", "w4a16", "q3_k_m", "Q6_K", "f32"]


@st.composite
def language(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "params_b": draw(amount(0.1, 13.0)),
        "quant": draw(st.sampled_from(QUANTS)),
        "backend": draw(st.sampled_from(["cpu", "GPU (OpenCL)", "Hexagon", "gpu", "npu", "Metal"])),
        "runtime": draw(st.sampled_from(["llama.cpp", "LiteRT-LM", "executorch", "mlx", "something new"])),
        "prompt_tokens": draw(st.integers(1, 100_000)),
        "recurrent": draw(st.sampled_from([None, True, False])),
    }


def without_npu(device: Any, work: Workload | LlmWorkload) -> bool:
    """Whether the workload is for an NPU that the device does not have: that is refused."""
    unit = work.unit if isinstance(work, Workload) else work.backend
    if unit != "npu" or not isinstance(device, str) or device not in ("galaxy_a14", "rpi5"):
        return False
    with pytest.raises(SpecError, match="no NPU is stated for it"):
        predict(device, work)
    return True


def sound(found: Forecast) -> None:
    assert 0 < found.low <= found.median <= found.high
    assert isfinite(found.high)
    assert all(isfinite(value) and value >= 0 for value in found.terms.values())


@CHECKS
@given(DEVICES, works())
def test_every_answer_is_finite_positive_and_holds_its_median(device: Any, work: dict[str, Any]) -> None:
    asked = Workload(**work)
    for one in () if without_npu(device, asked) else predict_all(device, asked):
        sound(one)


@CHECKS
@given(DEVICES, language())
def test_every_answer_on_language_models_is_too(device: Any, work: dict[str, Any]) -> None:
    asked = LlmWorkload(**work)
    for one in () if without_npu(device, asked) else predict_all(device, asked):
        sound(one)


@CHECKS
@given(DEVICES, works(), amount(1.0, 100.0), st.sampled_from(["gmacs", "act_in_m", "act_out_m", "n_ops", "params_m"]))
def test_more_work_never_takes_less(device: Any, work: dict[str, Any], more: float, field: str) -> None:
    """A feature that is left out is told from the others, so that only a given one can be made larger."""
    full = {"params_m": 5.0, "act_in_m": 8.0, "act_out_m": 7.0, "n_ops": 60.0, "transformer": False, **work}
    larger = {**full, field: full[field] * more}
    if without_npu(device, Workload(**full)):
        return
    assert predict(device, Workload(**larger)).median * SLACK >= predict(device, Workload(**full)).median


@CHECKS
@given(UNITS, amount(1e-3, 100.0), amount(1.0, 10.0))
def test_more_macs_alone_never_take_less(unit: tuple[str, str, str], gmacs: float, more: float) -> None:
    runtime, where, precision = unit
    least, most = (
        predict("pixel8", Workload(gmacs=one, runtime=runtime, unit=where, precision=precision)).median  # type: ignore[arg-type]
        for one in (gmacs, gmacs * more)
    )
    assert most * SLACK >= least


@CHECKS
@given(works(), amount(0.3, 4.0), amount(1.0, 3.0), st.sampled_from(["a55", "a76", "x3", "future9"]))
def test_a_faster_clock_memory_or_npu_is_never_slower(work: dict[str, Any], ghz: float, more: float, core: str) -> None:
    times = [
        predict(
            DeviceSpecs(cpu=f"4x{core}@{ghz * f:.6f}", memory_bandwidth_gb_per_s=20 * f, npu_int8_tops=10 * f),
            Workload(**work),
        ).median
        for f in (1.0, more)
    ]
    assert times[1] <= times[0] * SLACK


@CHECKS
@given(DEVICES, language(), amount(1.0, 10.0))
def test_larger_models_and_longer_prompts_are_never_faster(device: Any, work: dict[str, Any], more: float) -> None:
    small, large = LlmWorkload(**work), LlmWorkload(**{**work, "params_b": work["params_b"] * more})
    longer = LlmWorkload(**{**work, "prompt_tokens": round(work["prompt_tokens"] * more)})
    if without_npu(device, small):
        return
    for phase in ("decode_tokens_per_s", "prefill_tokens_per_s"):
        rate = predict(device, small, phase).median * SLACK
        assert predict(device, large, phase).median <= rate
        assert predict(device, longer, phase).median <= rate
    wait = predict(device, small, "first_token_ms").median
    assert predict(device, longer, "first_token_ms").median * SLACK >= wait


def test_a_longer_prompt_slows_a_measured_model_too() -> None:
    rates = [
        predict("Samsung Galaxy S23", LlmWorkload(model="qwen2.5-1.5b", prompt_tokens=tokens)).median
        for tokens in (256, 4096, 32_768)
    ]
    assert rates == sorted(rates, reverse=True)
    assert rates[2] < rates[0]


BITS = ["iq1_s", "q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", "f32"]


@pytest.mark.parametrize("size", [0.1, 0.5, 1.0, 3.0, 7.0, 13.0])
def test_fewer_bits_never_take_more_memory(size: float) -> None:
    needs = [predict("pixel8", LlmWorkload(params_b=size, quant=one), "peak_memory_mb").median for one in BITS]
    assert needs == sorted(needs)


@CHECKS
@given(works())
def test_int8_never_takes_more_memory_than_float(work: dict[str, Any]) -> None:
    options = {**work, "runtime": "litert", "unit": "cpu"}
    options.pop("file_mb", None)
    small, large = (
        predict("pixel8", Workload(**{**options, "precision": one}), "peak_memory_mb").median
        for one in ("int8", "fp32")
    )
    assert small <= large * SLACK


@pytest.mark.parametrize(
    ("names", "kernel"),
    [
        (("Q4_0", "q4_0", "q4-0", "Q4_1"), "q4_0"),
        (("q4_k_m", "Q4_K_S", "IQ4_XS", "iq4_nl"), "q4_k_m"),
        (("IQ2_XS", "Q2_K", "iq2_xxs", "TQ2_0"), "q2_k"),
        (("int4", "4bit", "4-bit", "w4a16", "awq", "4w8da g128", "q4f16_1"), "w4"),
        (("INT8", "8-bit", "w8a8", "q8"), "w8"),
        (("fp16", "BF16", "half", "float16"), "f16"),
        (("fp32", "f32", "float"), "f32"),
        (("banana", "banana4", "", "q9_9", "4"), ""),
    ],
)
def test_spellings_of_quantizations(names: tuple[str, ...], kernel: str) -> None:
    assert {name: quant_of(name) for name in names} == dict.fromkeys(names, kernel)


def test_what_is_taken_for_something_else_is_flagged() -> None:
    odd = predict("Samsung Galaxy S23", LlmWorkload(params_b=1.5, quant="IQ2_XS", runtime="llama.cpp"))
    assert any("IQ2_XS: taken as q2_k" in flag for flag in odd.flags)
    new = predict("Samsung Galaxy S23", LlmWorkload(params_b=1.5, runtime="banana"))
    assert any("runtime 'banana': no measurements" in flag for flag in new.flags)
    inside, tiny = (predict("Samsung Galaxy S23", LlmWorkload(params_b=size)) for size in (1.5, 0.05))
    assert any("outside the calibrated range" in flag for flag in tiny.flags)
    assert tiny.high / tiny.low > 1.5 * inside.high / inside.low


def test_features_of_the_callers_own_are_not_answered_with_the_row_of_a_name() -> None:
    known = Workload(model="resnet50", precision="fp32")
    own = Workload(model="resnet50", precision="fp32", gmacs=8.2)
    assert predict("pixel9_pro", known).level == "exact row"
    assert predict("pixel9_pro", own).level == "fitted"
    same = Workload(model="resnet50", precision="fp32", gmacs=4.09)
    assert predict("pixel9_pro", same).level == "exact row"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gmacs": 1e300}, "gmacs"),
        ({"gmacs": 1.0, "res": 1e200}, "res"),
        ({"gmacs": 1.0, "params_m": 0}, "params_m"),
        ({"gmacs": 1.0, "unit": "cpu or gpu"}, "unit"),
    ],
)
def test_impossible_features_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Workload.decode(values, where="workload")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predict(None, Workload(gmacs=1.0)), "device = None"),  # type: ignore[arg-type]
        (lambda: predict({"cpu": "4xA76@2"}, Workload(gmacs=1.0)), "DeviceSpecs"),  # type: ignore[arg-type]
        (lambda: predict("pixel8", {"gmacs": 1.0}), r"workload = .*Workload\(\.\.\.\)"),  # type: ignore[arg-type]
        (lambda: predict("pixel8", "mobilenet_v2"), "workload = 'mobilenet_v2'"),  # type: ignore[arg-type]
        (lambda: Workload(gmacs="600M"), r"Workload: gmacs = '600M'"),  # type: ignore[arg-type]
        (lambda: Workload(gmacs=1.0, flops=3), "unknown key 'flops'"),  # type: ignore[call-arg]
        (lambda: LlmWorkload(params_b=-1.0), "params_b = -1"),
        (lambda: DeviceSpecs(memory_bandwidth_gb_per_s=0.0), "memory_bandwidth_gb_per_s"),
        (lambda: Anchor.decode({"workload": {"gmcs": 1}, "measured": 1}, where="a.json"), "did you mean 'gmacs'"),
        (lambda: predict(DeviceSpecs(cpu="4xA76@0"), Workload(gmacs=1.0)), "0 GHz"),
        (lambda: predict(DeviceSpecs(cpu="4xA76@2400"), Workload(gmacs=1.0)), "2400 GHz"),
        (lambda: predict(DeviceSpecs(cpu="0xA76@2.4"), Workload(gmacs=1.0)), "0 cores"),
        (lambda: predict("pixel8", Workload(gmacs=1.0, runtime="ncnn", unit="npu")), "runtime 'ncnn' on the npu"),
        (lambda: predict("iphone15", Workload(gmacs=1.0, runtime="banana", unit="npu")), "runtime 'banana' on the npu"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as seen:
        call()
    assert "\n" not in str(seen.value)


@pytest.mark.parametrize(
    ("usual", "odd", "work"),
    [
        ({"npu_int8_tops": 40.0}, {"npu_int8_tops": 1e6}, Workload(gmacs=1.0, runtime="qnn", unit="npu")),
        ({"cpu": "4xA76@2.4"}, {"one_core_fp32_gflops": 1e5}, Workload(gmacs=1.0, runtime="ncnn")),
        ({"memory_bandwidth_gb_per_s": 60.0}, {"memory_bandwidth_gb_per_s": 1e4}, LlmWorkload(params_b=1.0)),
    ],
)
def test_a_device_unlike_any_that_was_measured_has_a_wider_interval(
    usual: dict[str, Any], odd: dict[str, Any], work: Workload | LlmWorkload
) -> None:
    plain, wide = (predict(DeviceSpecs(**one), work) for one in (usual, odd))
    assert wide.high / wide.low > 2 * plain.high / plain.low
    assert any(flag.startswith("device: faster or slower than any") for flag in wide.flags)
    assert not any(flag.startswith("device:") for flag in plain.flags)


def test_a_precision_that_a_unit_was_not_measured_in_is_flagged_and_wider() -> None:
    asked = [Workload(gmacs=1.0, unit="gpu", precision=one) for one in ("fp16", "int8")]
    same, other = (predict("pixel8", one) for one in asked)
    assert other.median == same.median
    assert other.high / other.low > 2 * same.high / same.low
    assert any("int8: no measurements on this unit, taken as float" in flag for flag in other.flags)


@pytest.mark.parametrize("precision", ["float", "w8a8", "w8a16"])
def test_layers_of_a_compiled_graph_are_used_where_they_are_given(precision: str) -> None:
    """More of them are never faster; without them another fit answers, and says so."""
    work = {"gmacs": 1.0, "params_m": 5.0, "act_in_m": 8.0, "act_out_m": 7.0, "n_ops": 60.0}
    options = {"runtime": "qnn", "unit": "npu", "precision": precision}
    told, few, many = (
        predict("Samsung Galaxy S23", Workload(**work, **options, **layers))  # type: ignore[arg-type]
        for layers in ({}, {"graph_layers": 80.0}, {"graph_layers": 900.0})
    )
    assert few.median < many.median
    assert any(flag.startswith("layers told") for flag in told.flags)
    assert not any(flag.startswith("layers told") for flag in few.flags)
