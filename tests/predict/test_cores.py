"""Cores and threads: what a design without rows is told from, and what lies between measured thread counts."""

from __future__ import annotations

from typing import Any

import pytest

from edgedistill.predict import DeviceSpecs, LlmWorkload, Workload, predict
from edgedistill.predict.cores import CORES, LINES

MOBILENET: dict[str, Any] = {"gmacs": 0.3, "dw_gmacs": 0.02, "params_m": 3.5, "n_ops": 65}
RUNS = [("ncnn", "fp32"), ("ncnn", "int8"), ("tflite", "fp32"), ("tflite", "int8")]


def ms(device: Any, runtime: str, precision: str, threads: int) -> float:
    work = Workload(**MOBILENET, runtime=runtime, unit="cpu", precision=precision, threads=threads)
    return predict(device, work).median


@pytest.mark.parametrize(("runtime", "precision"), RUNS)
@pytest.mark.parametrize(
    ("slower", "faster"),
    [("X1@3.0", "X2@3.2"), ("X4@3.3", "X925@3.62"), ("A76@2.4", "A77@2.84"), ("A55@1.8", "A520@2.3")],
)
def test_a_design_that_no_row_has_is_no_slower_than_its_forerunner_of_a_lower_clock(
    runtime: str, precision: str, slower: str, faster: str
) -> None:
    old, new = (ms(DeviceSpecs(cpu=f"4x{core}"), runtime, precision, 1) for core in (slower, faster))
    assert new <= old


def test_lines_name_known_designs_each_once() -> None:
    names = [name for line in LINES.values() for name in line]
    assert len(names) == len(set(names))
    assert {name for name in names if name not in CORES} <= {"firestorm", "avalanche", "everest", "p", "apple-p"}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("device", ["Raspberry Pi 5", "Raspberry Pi 3 Model B+ Broadcom BCM2837B0, Cortex-A53"])
def test_a_thread_count_between_two_that_were_measured_lies_between_them(device: str, precision: str) -> None:
    """Rows are of 1 and 4 threads; 2 was told from the first alone and 3 from the second, which was slower than 2."""
    told = [ms(device, "ncnn", precision, threads) for threads in (1, 2, 3, 4)]
    assert told == sorted(told, reverse=True)
    assert len(set(told)) == 4
    work = Workload(**MOBILENET, runtime="ncnn", unit="cpu", precision=precision, threads=3)
    assert "1 and 4 threads" in predict(device, work).method


@pytest.mark.parametrize("core", ["A75@2.8", "Vortex@2.49", "Carmel@2.2"])
@pytest.mark.parametrize("runtime", ["ncnn", "tflite"])
def test_half_precision_is_no_dot_product(core: str, runtime: str) -> None:
    """Snapdragon 845, Apple's A12 and Xavier have the one and not the other, which int8 runs on."""
    told, dot = (ms(DeviceSpecs(cpu=f"4x{core}", fp16=fp16), runtime, "int8", 1) for fp16 in (None, True))
    assert told > 1.1 * dot
    plain, half = (ms(DeviceSpecs(cpu=f"4x{core}", fp16=fp16), runtime, "fp32", 1) for fp16 in (None, True))
    assert plain == half


def test_apples_tops_are_of_int8_since_a17_and_core_ml_runs_fp16() -> None:
    """16 cores of A16 state 17 TOPS and those of A17 Pro 35: it is no twice as fast."""
    work = Workload(**MOBILENET, runtime="coreml", unit="npu", precision="fp16")
    old, new = predict("iphone14pro", work).median, predict("iphone15pro", work).median
    assert 0.9 * old < new < 1.05 * old
    chips = ("Apple M4", "M4 Pro", "Apple M2")
    stated = [predict(DeviceSpecs(soc=soc, npu_int8_tops=38.0), work).median for soc in chips]
    assert stated[0] == stated[1] > 1.2 * stated[2]


@pytest.mark.parametrize("device", ["rpi5", "galaxy_s24", "galaxy_s23", DeviceSpecs(cpu="4xA78@2.4")])
@pytest.mark.parametrize("quant", ["f16", "bf16", "f32"])
def test_floats_read_a_prompt_slower_than_8_bits(device: Any, quant: str) -> None:
    """Raspberry Pi 5: 8 and 35 tokens/s in one build, Pi 4: 3 and 10. Matrices of int8 are of no use to floats."""

    def rate(kind: str, backend: str) -> float:
        runtime = "llama.cpp 2024-03"  # no blocks for dot products yet
        work = LlmWorkload(params_b=1.1, quant=kind, backend=backend, runtime=runtime, prompt_tokens=256)
        return predict(device, work, "prefill_tokens_per_s").median

    assert 3.0 < rate("q8_0", "cpu") / rate(quant, "cpu") < 16.0
    if device == "galaxy_s23":  # nothing is known against a GPU's
        assert rate(quant, "gpu") == rate("q8_0", "gpu")


def test_an_npu_without_a_matrix_unit_is_slower_than_its_tops_tell() -> None:
    """A Snapdragon 865's 15 TOPS take 4 times as long as theirs whom the line by TOPS is of; a 778G has a newer one."""
    work = Workload(**MOBILENET, runtime="tflite", unit="npu", precision="w8a8")
    old, plain, new = (
        predict(DeviceSpecs(name="phone", soc=soc, npu_int8_tops=12.0, memory_bandwidth_gb_per_s=34.0), work).median
        for soc in ("Snapdragon 765", "", "Snapdragon 778")
    )
    assert old > 1.5 * plain
    assert new == plain
