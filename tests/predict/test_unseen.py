"""Measurements that were published elsewhere: that no fit sees them, and what the predictor is worth on them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any

import pytest

from edgedistill.errors import SpecError
from edgedistill.predict import DeviceSpecs, LlmWorkload, Workload, predict, resolve, tables
from edgedistill.predict.calibrate.samples import all_samples, fit_imputation
from edgedistill.predict.classes import COLLECTED
from edgedistill.predict.cores import parse_cores
from edgedistill.predict.features import feature_tables

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def unseen() -> Iterator[Any]:
    sys.path.insert(0, str(BENCH))
    import unseen

    yield unseen
    sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def outside(unseen: Any) -> dict[tuple[str, str], list[Any]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for one in unseen.meet():
        if one.row["part"] == "outside":
            found.setdefault((one.row["batch"], one.kind), []).append(one)
    return found


def test_no_row_that_judges_is_one_that_was_fitted(unseen: Any) -> None:
    """By model and figure; Rockchip's models and chips that were kept apart are in no shipped file."""
    fitted = {(row["model"], float(row["ms"])) for row in tables.rows("latency.csv")}
    described = set(feature_tables()[COLLECTED])
    rows = unseen.read("latency.csv")
    judging = [row for row in rows if row["part"] == "outside"]
    elsewhere = [row for row in judging if "in latency.csv" not in row["source"]]  # the others no feature set describes
    assert len(elsewhere) > 200
    assert not {(row["model"], float(row["ms"])) for row in elsewhere} & fitted
    samples = all_samples(fit_imputation())
    seen = {(name, row) for name, data in samples.items() for row in zip(data.model, data.log_ms.tolist(), strict=True)}
    for row in (row for row in judging if row not in elsewhere):
        name = f"litert {row['unit']} {'int8' if row['precision'] == 'int8' else 'float'}"
        assert (name, (row["model"], log(float(row["ms"])))) not in seen, row
    kept = [row for row in judging if row["runtime"] == "rknn"]
    assert {row["device"] for row in kept if row["model"] in described} == {"RK3562", "RK3576 @1 core", "RV1109"}
    assert all(row["source"] for row in rows)


def test_no_rate_that_judges_is_one_that_was_fitted(unseen: Any) -> None:
    """By phase, rate and parameters."""
    columns = {"decode": "tg_tps", "prefill": "pp_tps"}
    kept = [row for row in tables.rows("llm.csv") if row["params_b"]]
    fitted = {
        (name, float(row[name]), float(row["params_b"])) for row in kept for name in columns.values() if row[name]
    }
    rows = unseen.read("llm.csv")
    told = [(row["part"], (columns[row["phase"]], float(row["tokens_per_s"]), float(row["params_b"]))) for row in rows]
    assert {row for part, row in told if part == "calibration"} <= fitted
    judging = {row for part, row in told if part == "outside"}
    assert len(judging) > 50
    assert not judging & fitted


def test_no_model_of_the_second_batch_has_rows_under_its_own_name(unseen: Any) -> None:
    """A traced model has a name of ours; the page that it is from, or ncnn's name, tells the one of the fitted rows."""
    fitted = {row["model"].split(":")[0] for row in tables.rows("latency.csv") if row["unit"] == "npu"}
    by_device = {(row["device"], row["model"], row["unit"]) for row in tables.rows("latency.csv")}
    second = [row for row in unseen.read("latency.csv") if row["batch"] == "2"]
    pages = {row["source"].split("/models/")[1].split("/")[0] for row in second if "ai-hub-models" in row["source"]}
    assert len(pages) == 7
    assert not pages & fitted
    of_ncnn = {(row["device"], row["model"].removeprefix("ncnn:"), row["unit"]) for row in second}
    assert not of_ncnn & by_device


# batch, class -> at most so much MdAPE, percent, and at least so much coverage, percent, of the rows outside
JUDGED = [
    ("1", "litert cpu float", 20.0, 70),
    ("1", "ncnn cpu float", 25.0, 70),
    ("1", "paddle cpu float", 30.0, 70),
    ("1", "coreml ane float", 25.0, 80),
    ("1", "rockchip npu int8", 50.0, 70),
    ("2", "litert cpu float", 25.0, 65),
    ("2", "ncnn cpu float", 20.0, 80),
    ("2", "paddle cpu float", 25.0, 90),
    ("2", "coreml ane float", 35.0, 65),
    ("2", "qualcomm npu float", 20.0, 80),
    ("2", "qualcomm npu w8a16", 20.0, 85),
    ("2", "qualcomm npu w8a8", 20.0, 85),
    ("2", "llm decode cpu", 30.0, 90),
]


@pytest.mark.parametrize(("batch", "kind", "most", "least"), JUDGED)
def test_errors_on_what_no_fit_has_seen(
    unseen: Any, outside: dict[tuple[str, str], list[Any]], batch: str, kind: str, most: float, least: int
) -> None:
    seen = unseen.judge(outside[batch, kind], "now")
    assert seen["mdape"] <= most
    assert seen["coverage_80"] >= least


def test_the_page_is_what_the_predictor_says_today(unseen: Any) -> None:
    met = [one for one in unseen.meet() if one.row["part"] == "outside"]
    shipped = json.loads((BENCH / "results" / "unseen.json").read_text(encoding="utf-8"))
    today = {batch: unseen.groups(rows) for batch, rows in unseen.by_batch(met).items()}
    assert json.loads(json.dumps(today)) == shipped["outside"]
    assert set(today) == {"1", "2"}


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1xKryo 585 Prime@2.84 + 3xKryo 585 Gold@2.42 + 4xKryo 585 Silver@1.8", ["a77", "a77", "a55"]),
        ("4xKryo280@2.45 + 4xKryo280 Silver@1.9", ["a73", "a53"]),
        ("4xKryo@2.35", ["kryo"]),
        ("1xC1-Ultra@4.21 + 3xC1-Premium@3.5", ["c1-ultra", "c1-premium"]),
    ],
)
def test_cores_by_the_names_of_their_makers(text: str, names: list[str]) -> None:
    assert [core.name for core in parse_cores(text)] == names


def test_a_chip_is_a_device_too() -> None:
    """By the name that its maker gives it; the phone's own facts stay with the phone."""
    chip, phone = resolve("Snapdragon 865"), resolve("Xiaomi Mi 10")
    assert (chip.cores, chip.bandwidth_gb_per_s, chip.soc) == (phone.cores, phone.bandwidth_gb_per_s, phone.soc)
    assert resolve("Broadcom BCM2712").cores == resolve("rpi5").cores
    assert resolve("Qualcomm Snapdragon 8 Gen 3").battery_wh is None
    work = Workload(gmacs=0.3, runtime="ncnn", precision="fp32", threads=4)
    assert predict(DeviceSpecs(soc="Snapdragon 865"), work).median == predict("Snapdragon 865", work).median
    assert resolve("Apple A14").cores == resolve("A14 Bionic").cores == resolve("Apple iPhone 12").cores
    for wrong in ("Snapdragon 9999", "A14", "samsung", ""):  # Apple's chip or Samsung's phone: which, it does not say
        with pytest.raises(SpecError, match="unknown device"):
            resolve(wrong)


def test_rockchips_npus_are_not_taken_for_qualcomms() -> None:
    work = Workload(gmacs=4.1, params_m=25.6, runtime="rknn", unit="npu", precision="int8")
    own = predict(DeviceSpecs(soc="Rockchip RK3576", npu_int8_tops=6.0), work)
    assert "rockchip npu int8" in own.method
    by_soc = predict(DeviceSpecs(soc="RK3576", npu_int8_tops=6.0), work.model_copy(update={"runtime": "onnx"}))
    assert by_soc.median == own.median
    assert "rockchip" not in predict("galaxy_s24", work.model_copy(update={"runtime": "qnn"})).method
    for other in ("galaxy_s24", "pixel8", "iphone15"):  # no runtime of Rockchip's runs there
        with pytest.raises(SpecError, match="no measurements of runtime 'rknn'"):
            predict(other, work)


def test_a_small_npu_of_another_vendor_is_taken_as_one_of_its_size() -> None:
    """Qualcomm's least has 15 TOPS, and a fit by those says nothing of 4; Qualcomm's own stay Qualcomm's."""
    work = Workload(gmacs=0.3, params_m=3.5, runtime="litert", unit="npu", precision="int8")
    small = predict(DeviceSpecs(soc="NXP i.MX 8M with Google Edge TPU", npu_int8_tops=4.0), work)
    assert "rockchip" in small.method
    assert any("of this vendor, taken as Rockchip's" in flag for flag in small.flags)
    big = predict(DeviceSpecs(soc="Exynos 2400", npu_int8_tops=17.0), work)
    assert "qualcomm" in big.method
    assert any("of this vendor, taken as Qualcomm's" in flag for flag in big.flags)
    for own in ("Snapdragon 7c", "QRB4210", "MSM8998", "QCS6490", "SDM845", "SA8155P"):
        assert "qualcomm" in predict(DeviceSpecs(soc=own, npu_int8_tops=5.0), work).method
    assert not any("vendor" in flag for flag in predict(DeviceSpecs(soc="RK3576", npu_int8_tops=3.0), work).flags)


def test_a_bandwidth_that_is_not_stated_is_told_from_the_cores() -> None:
    """A board of four small cores has no phone's memory; what is told is said, and widens the interval."""
    work = LlmWorkload(params_b=0.5, quant="q4_0")
    small, big = (predict(DeviceSpecs(cpu=cpu), work) for cpu in ("4xA53@1.6", "2xOryon@4.3 + 6xOryon@3.5"))
    assert small.median < big.median / 3
    stated = predict(DeviceSpecs(cpu="4xA53@1.6", memory_bandwidth_gb_per_s=12.8), work)
    assert stated.median == pytest.approx(small.median, rel=0.6)
    assert small.high / small.low > 1.2 * stated.high / stated.low
    assert small.missing == ("memory_bandwidth_gb_per_s",)
    assert not stated.missing
    assert any("told from the cores" in flag for flag in small.flags)


def prompt(device: str, quant: str, runtime: str = "llama.cpp", **more: Any) -> float:
    work = LlmWorkload(
        params_b=0.742, embedding_params_b=0.067, quant=quant, runtime=runtime, prompt_tokens=512, **more
    )
    return predict(device, work, "prefill_tokens_per_s").median


def test_llama_cpp_reads_prompts_as_its_build_does_where_there_are_no_int8_matrices() -> None:
    """Of a Raspberry Pi 5, its pull requests 19356 and 19360 state 39.93 before and 105.82, 89.73 after."""
    before, after = prompt("rpi5", "q6_k", "llama.cpp 2025-12"), prompt("rpi5", "q6_k", "llama.cpp 2026-02")
    assert after / before > 2
    assert abs(log(105.82 / after)) < log(2)
    assert abs(log(89.73 / prompt("rpi5", "q5_k_m", "llama.cpp 2026-03-01"))) < log(2)
    assert abs(log(39.93 / before)) < log(2)
    assert prompt("rpi5", "q6_k") == pytest.approx((before * after) ** 0.5, rel=0.05)  # not dated
    told = predict("rpi5", LlmWorkload(params_b=0.742, quant="q8_0"), "prefill_tokens_per_s")
    assert any("build: not dated" in flag for flag in told.flags)
    assert (
        prompt("rpi5", "q4_0")
        == prompt("rpi5", "q4_0", "llama.cpp 2024-12")
        > 2 * prompt("rpi5", "q4_0", "llama.cpp 2024-03")
    )


@pytest.mark.parametrize("device", ["rpi4", "galaxy_s24"])  # without dot products, and with matrices
def test_the_date_of_a_build_says_nothing_of_other_cpus(device: str) -> None:
    for quant in ("q4_0", "q8_0", "f16"):
        assert prompt(device, quant, "llama.cpp 2024-03-26") == prompt(device, quant, "llama.cpp 2026-05")


def test_a_prompt_in_floats_says_nothing_of_one_in_integers() -> None:
    """A Pi's rows: 8 tokens a second in f16, 35 in q8_0, of one build and model."""
    assert prompt("rpi5", "q8_0", "llama.cpp 2024-03-26") > 3 * prompt("rpi5", "f16", "llama.cpp 2024-03-26")


def test_an_npu_reads_a_prompt_in_8_bits_as_fast_as_in_4_and_writes_slower() -> None:
    """Rockchip's table of a RK3576: 372 and 374 tokens a second, then 21.7 and 32.6."""
    board = DeviceSpecs(npu_int8_tops=6.0, memory_bandwidth_gb_per_s=17.0)  # the RK3576 itself has rows
    work = {
        quant: LlmWorkload(params_b=0.494, quant=quant, runtime="rkllm", backend="npu") for quant in ("w8a8", "w4a16")
    }
    prefill = {quant: predict(board, one, "prefill_tokens_per_s").median for quant, one in work.items()}
    decode = {quant: predict(board, one).median for quant, one in work.items()}
    assert prefill["w8a8"] == pytest.approx(prefill["w4a16"], rel=0.05)
    assert decode["w8a8"] < 0.9 * decode["w4a16"]


def test_a_board_is_known_without_its_chip() -> None:
    assert resolve("Orange Pi 5").soc == resolve("OrangePi5, Rockchip RK3588s").soc
