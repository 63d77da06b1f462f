"""Forecasts beside what is known without measuring: peaks, a board and its successor, units that exist."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from edgedistill.errors import SpecError
from edgedistill.predict import Anchor, DeviceSpecs, LlmWorkload, Workload, calibrate_device, predict, tables
from edgedistill.predict.calibrate import intervals
from edgedistill.predict.calibrate.crossval import HeldOut
from edgedistill.predict.calibrate.llm import all_threads
from edgedistill.predict.calibrate.samples import all_samples, fit_imputation
from edgedistill.predict.cores import parse_cores
from edgedistill.predict.devices import of_name
from edgedistill.predict.latency import INT8_SHARE

RESNET: dict[str, Any] = {
    "gmacs": 4.09, "dw_gmacs": 0.0, "params_m": 25.6, "act_in_m": 11.6, "act_out_m": 11.3, "n_ops": 56, "res": 224,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "gmacs": 2.9, "params_m": 25.0, "act_in_m": 40.0, "act_out_m": 30.0, "n_ops": 400, "transformer": True,
}  # fmt: skip


@pytest.mark.parametrize("device", ["pixel6", "galaxy_s25", "rpi4", DeviceSpecs(cpu="1xA76@2.84 + 3xA76@2.42")])
@pytest.mark.parametrize("threads", [1, 4])
def test_int8_on_a_cpu_is_no_faster_than_its_dot_products(device: Any, threads: int) -> None:
    """The class has no row like ResNet-50: all multiply-accumulates in regular convolutions of low resolution."""
    told = predict(device, Workload(**RESNET, precision="int8", threads=threads))
    plain = predict(device, Workload(**RESNET, precision="fp32", threads=threads))
    assert 2.0 < plain.median / told.median < 6.0
    assert any("dot products" in flag for flag in told.flags)
    assert sum(told.terms.values()) == pytest.approx(told.median)


def test_no_measured_row_is_faster_than_the_share_of_the_peak_that_is_granted() -> None:
    data = all_samples(fit_imputation())["litert cpu int8"]
    shares = []
    for amounts, log_ms, group in zip(data.terms, data.log_ms, data.group, strict=True):
        device, _, threads, _ = data.groups[group].split("|")
        peak = of_name(device).int8_peak_gmacs(int(threads))
        assert peak
        shares.append(1e3 * amounts[data.one.terms.index("macs_ms")] / np.exp(log_ms) / peak)
    assert 0.9 * INT8_SHARE < max(shares) < INT8_SHARE


def test_a_term_that_is_next_to_nothing_widens_nothing_however_odd_its_amount() -> None:
    """The input of a text model is 128 tokens where that of the measured models is 50 000 pixels and more."""
    usual, few, huge = (
        predict("galaxy_s24", Workload(**{**TEXT, **changed}, runtime="qnn", unit="npu", precision="fp16"))
        for changed in ({"input_pixels": 224.0**2}, {"input_pixels": 128.0}, {"gmacs": 2e4, "input_pixels": 224.0**2})
    )
    widths = [one.high / one.low for one in (usual, few, huge)]
    assert widths[1] == pytest.approx(widths[0], rel=0.05)
    assert any("input: outside the calibrated range" in flag for flag in few.flags)
    assert widths[2] > 3 * widths[0]


@pytest.mark.parametrize("device", ["rpi5", "Raspberry Pi 4B", "galaxy_a14", "host"])
@pytest.mark.parametrize(
    "work", [Workload(gmacs=1.0, runtime="qnn", unit="npu"), LlmWorkload(params_b=1.0, backend="npu")]
)
def test_an_npu_that_a_device_does_not_have_is_refused(device: str, work: Workload | LlmWorkload) -> None:
    with pytest.raises(SpecError, match=r"no NPU is stated for it; .* give DeviceSpecs"):
        predict(device, work)


def test_an_npu_of_another_vendor_is_flagged_and_wider() -> None:
    work = Workload(**RESNET, runtime="litert", unit="npu", precision="int8")
    theirs, other = (predict(DeviceSpecs(soc=soc, npu_int8_tops=30.0), work) for soc in ("", "MediaTek Dimensity 9200"))
    assert other.high / other.low > 2 * theirs.high / theirs.low
    assert any("NPUs of this vendor" in flag for flag in other.flags)


@pytest.mark.parametrize("params_b", [1.24, 3.21, 8.03])
def test_a_newer_board_decodes_faster_than_the_one_before(params_b: float) -> None:
    """Pi 5 has rows of one and two threads beside those of all four: who ships uses all."""
    older, newer = (predict(name, LlmWorkload(params_b=params_b, quant="q4_k_m")) for name in ("rpi4", "rpi5"))
    assert newer.median > 2 * older.median


def test_a_measured_size_is_forecast_near_its_row_through_another_front_end() -> None:
    """ollama runs llama.cpp: its rows of the Pi 5 (3.21 x 10^9 parameters in Q4_K_M: 4.6 to 5.6 tokens/s) count."""
    told = predict("rpi5", LlmWorkload(params_b=3.21, quant="q4_k_m", runtime="llama.cpp"))
    assert 4.0 < told.median < 6.0
    assert told.level == "fitted"


def test_rows_of_fewer_threads_are_left_out_of_their_own_runtime_only() -> None:
    rows = [
        {"device": device, "unit": "cpu", "runtime": runtime, "threads": threads}
        for device, runtime, threads in (
            ("a", "llama.cpp b1", "1"), ("a", "llama.cpp b2", "4"), ("a", "other", "2"), ("b", "llama.cpp b1", "1"),
            ("a", "llama.cpp b3", ""),
        )
    ]  # fmt: skip
    assert [rows.index(row) for row in all_threads(rows)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "count", "ghz"),
    [
        ("4x A76 @ 2.4", 4, 2.4),
        ("8 x Cortex-A55 2.0GHz", 8, 2.0),
        ("1xX4@3.3GHz", 1, 3.3),
        ("Cortex-A76 2.4GHz x 4", 4, 2.4),
    ],
)
def test_cores_are_read_as_people_write_them(text: str, count: int, ghz: float) -> None:
    assert [(core.cores, core.ghz) for core in parse_cores(text)] == [(count, ghz)]


def test_a_cluster_without_a_clock_is_not_read_as_one_with() -> None:
    assert parse_cores("1xX3 + 4xA715 + 4xA510") == ()


def test_a_chip_by_name_has_the_facts_that_a_phone_with_it_states() -> None:
    work = Workload(**RESNET, runtime="qnn", unit="npu", precision="w8a16")
    chip, phone = predict(DeviceSpecs(soc="Snapdragon 8 Gen 3"), work), predict("oneplus12", work)
    assert chip.median == pytest.approx(phone.median, rel=0.05)
    assert not chip.missing
    own = predict(DeviceSpecs(soc="Snapdragon 8 Gen 3", npu_int8_tops=20.0), work)
    assert own.median > 1.2 * chip.median
    named = predict("Galaxy S23 Ultra", Workload(**RESNET))  # measured, but no table has its cores
    assert named.median == pytest.approx(predict("galaxy_s23", Workload(**RESNET)).median, rel=0.1)


def test_the_peak_of_all_cores_is_worth_something_where_no_core_is_stated() -> None:
    slow, fast = (predict(DeviceSpecs(cpu_peak_fp32_gflops=peak), Workload(**RESNET)) for peak in (60.0, 300.0))
    assert slow.median > 3 * fast.median


def test_few_chips_have_the_errors_of_the_other_precisions_in_their_interval() -> None:
    """Four chips, too few to be left out in turn, each off by its own factor in both precisions."""
    chips = tuple("abcd")
    narrow = HeldOut(np.linspace(-0.2, 0.2, 48), tuple(chips[n % 4] for n in range(48)), np.ones(48, dtype=bool))
    wide = HeldOut(2 * narrow.error, narrow.key, narrow.traced)
    own, both = intervals.joint(narrow, []), intervals.joint(narrow, [wide])
    assert both[0] < own[0] < 0 < own[1] < both[1]
    for count in (5, 48):
        many = HeldOut(narrow.error, tuple(str(n % count) for n in range(48)), narrow.traced)
        assert intervals.joint(many, [wide]) == intervals.joint(many, [])


def test_how_sure_a_coverage_is_depends_on_how_many_chips_there_are() -> None:
    inside = np.arange(400) % 5 > 0  # 80 %
    low, high = intervals.sure(inside, map(str, range(400)))
    assert (low, high) == (pytest.approx(0.758, abs=0.003), pytest.approx(0.836, abs=0.003))  # Wilson's, n = 400
    chips = np.repeat(list("abcde"), 80)
    by_chip = intervals.sure(chips != "a", chips)  # one chip of five has none
    assert by_chip[1] - by_chip[0] > 4 * (high - low)


def test_the_interval_of_a_device_that_states_nothing_holds_80_percent_of_the_chips() -> None:
    """Of no facts the middle of all chips is told; they lie 20 times apart, and the interval says so."""
    for model, precision in (("resnet50", "fp32"), ("resnet50_int8", "int8")):
        held: dict[str, list[bool]] = {}
        for row in tables.latency_rows(model):
            if row["runtime"].split(" ")[0] != "ncnn" or row["unit"] != "cpu":
                continue
            work = Workload(model=model, runtime="ncnn", precision=precision, threads=int(row["threads"]))
            found = predict(DeviceSpecs(), work)
            assert "one_core_fp32_gflops (or cpu)" in found.missing
            assert any("not stated" in flag and "interval widened" in flag for flag in found.flags)
            held.setdefault(row["device"], []).append(found.low <= float(row["ms"]) <= found.high)
        shares = [sum(one) / len(one) for one in held.values()]
        assert len(shares) > 20
        assert 0.7 < sum(shares) / len(shares) < 0.97


def test_a_fact_that_is_stated_narrows_the_interval() -> None:
    def width(**facts: Any) -> float:
        found = predict(DeviceSpecs(**facts), Workload(gmacs=1.0, params_m=5.0, runtime="ncnn"))
        return found.high / found.low

    assert width() > 3 * width(one_core_fp32_gflops=40.0)
    assert width(one_core_fp32_gflops=40.0) == width(cpu="4xA78@2.5")


def test_threads_count_on_a_device_that_states_nothing() -> None:
    one, four = (predict(DeviceSpecs(), Workload(gmacs=1.0, runtime="ncnn", threads=n)).median for n in (1, 4))
    assert four < 0.7 * one


def test_a_model_known_by_rows_alone_is_less_sure_on_an_unknown_device() -> None:
    """A model that nothing describes: the rows of other chips, scaled."""
    work = Workload(model="HRNet_w18", runtime="paddle_lite")
    known, bare = predict("rpi5", work), predict(DeviceSpecs(), work)
    assert known.level == bare.level == "scaled from another device"
    assert bare.high / bare.low > 2 * known.high / known.low
    assert bare.missing


def test_a_plain_transformer_on_apples_npu_may_take_four_times_as_long() -> None:
    """DeiT-S takes 11.8 ms on iPhone 12 (arXiv 2206.01191); what was measured on the unit was designed for it."""
    known = {"gmacs": 4.6, "params_m": 22.0, "runtime": "coreml", "unit": "npu", "precision": "fp16"}
    deit, convolutions = (predict("iPhone 12", Workload(**known, transformer=one)) for one in (True, False))
    assert deit.low < 11.8 < deit.high
    assert convolutions.high < 11.8
    assert any(flag.startswith("attention") for flag in deit.flags)
    assert not any(flag.startswith("attention") for flag in convolutions.flags)


@pytest.mark.parametrize("unit", [{}, {"runtime": "qnn", "unit": "npu", "precision": "w8a8"}])
def test_a_known_model_at_another_input_size_takes_the_work_of_that_size(unit: dict[str, Any]) -> None:
    small, own, large = (predict("oneplus12", Workload(model="resnet18", res=res, **unit)) for res in (112, 224, 448))
    assert small.median < 0.6 * own.median
    assert large.median > 2.0 * own.median
    told = "gmacs and activations (x4) told from the other features"
    assert told in large.flags
    assert not any("gmacs" in flag for flag in own.flags)
    memory = [predict("oneplus12", Workload(model="resnet18", res=res), "peak_memory_mb").median for res in (224, 448)]
    assert memory[1] > memory[0]
    unknown = predict(
        "oneplus12", Workload(model="resnet18", res=448, runtime="ncnn")
    )  # of ncnn's no size is published
    assert any(flag.startswith("res: the size") for flag in unknown.flags)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("SM8650-AB", "Snapdragon 8 Gen 3"),
        ("sm8750", "Snapdragon 8 Elite"),
        ("Rockchip RK3588S", "RK3588"),
        ("GS201", "Google Tensor G2"),
    ],
)
def test_a_chip_by_its_makers_number_is_the_chip(name: str, same: str) -> None:
    work = Workload(gmacs=4.35, params_m=3.2, runtime="ncnn", threads=4)
    number, chip = (predict(DeviceSpecs(soc=soc), work) for soc in (name, same))
    assert number.model_copy(update={"device": chip.device}) == chip
    assert predict(name, work).median == chip.median
    assert not chip.missing


def test_an_unknown_device_or_model_is_told_what_is_near_and_what_to_give() -> None:
    for call, hint in (
        (lambda: predict("Xiaomi 14", Workload(gmacs=1.0)), "DeviceSpecs(soc="),
        (lambda: predict("pixel8", Workload(model="yolo11n")), "gmacs, params_m"),
        (lambda: predict("pixel8", LlmWorkload(model="mixtral-8x7b")), "active_params_b"),
    ):
        with pytest.raises(SpecError, match=re.escape(hint)) as seen:
            call()
        assert len(str(seen.value)) < 600


def test_what_the_name_of_a_language_model_tells_is_used_and_flagged() -> None:
    """Of a mixture of experts a token reads the active parameters alone."""
    mixture, dense = (predict("pixel9", LlmWorkload(model=name)) for name in ("Qwen9-30B-A3B", "Qwen9-30B"))
    assert mixture.median > 5 * dense.median
    assert any(flag.startswith("active_params_b told from the model's name") for flag in mixture.flags)
    assert any(flag.startswith("params_b told from the model's name") for flag in dense.flags)
    assert predict("pixel9", LlmWorkload(model="some/New-2B-GGUF/Q4_K_M")).median > dense.median
    small = predict("pixel9", LlmWorkload(model="some-270m-it"))
    assert small.median == pytest.approx(predict("pixel9", LlmWorkload(params_b=0.27)).median)
    mini, short = (predict("pixel9", LlmWorkload(model=name)) for name in ("phi-3-mini-4k-instruct", "Phi-3-mini"))
    assert mini.median == short.median


def test_keys_and_values_hold_the_whole_request() -> None:
    def kv(**tokens: int) -> float:
        return predict("pixel9", LlmWorkload(params_b=1.24, **tokens), "peak_memory_mb").terms["kv_mb"]

    assert kv(prompt_tokens=8192, generated_tokens=64) == pytest.approx(kv(context_tokens=8256))
    assert kv(prompt_tokens=100) == kv(context_tokens=2048)


def test_the_calibration_of_another_device_is_refused() -> None:
    work = Workload(gmacs=1.0)
    own = calibrate_device("pixel9", [Anchor(workload=work, measured=30.0)], runtime_build="litert 2.3.0")
    assert predict("pixel9", work, calibration=own).level == "calibrated"
    assert predict("Google Pixel 9", work, calibration=own).level == "calibrated"
    with pytest.raises(SpecError, match="calibration: of 'Google Pixel 9', and the device is 'Google Pixel 8'"):
        predict("pixel8", work, calibration=own)


@pytest.mark.parametrize("measured", [1e-9, 0.035, 1e11])
def test_an_absurd_anchor_is_refused_not_believed_a_little(measured: float) -> None:
    """0.035 for 35 ms: the unit was another."""
    near = [Anchor(workload=Workload(gmacs=gmacs, params_m=4.0), measured=35.0) for gmacs in (0.8, 1.0)]
    odd = Anchor(workload=Workload(gmacs=1.0, params_m=4.0), measured=measured)
    with pytest.raises(SpecError, match=r"anchor 2: measured .* times apart\. Is it in ms"):
        calibrate_device("pixel9", [*near, odd], runtime_build="litert 2.3.0")
    assert calibrate_device("pixel9", near, runtime_build="litert 2.3.0").anchors == {"litert cpu float": 2}
