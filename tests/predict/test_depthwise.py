"""A model of depthwise convolutions alone is not told to be faster than one of regular ones."""

from __future__ import annotations

from itertools import pairwise

import pytest

from edgedistill.predict import Workload, predict

CLASSES = [
    ("litert", "cpu", "fp32"), ("litert", "cpu", "int8"), ("litert", "cpu", "dynamic_int8"), ("litert", "gpu", "fp16"),
    ("ncnn", "cpu", "fp16"), ("ncnn", "gpu", "fp16"), ("tflite", "npu", "int8"),
]  # fmt: skip
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99, 1.0)
SLACK = 1 + 1e-9


def told(runtime: str, unit: str, precision: str, **work: float) -> float:
    known = {"gmacs": 0.3, "params_m": 3.5, "act_in_m": 67.0, "act_out_m": 67.0, "n_ops": 60, "res": 224}
    asked = Workload(**{**known, **work}, runtime=runtime, unit=unit, precision=precision)  # type: ignore[arg-type]
    return predict("pixel8", asked).median


@pytest.mark.parametrize("kind", CLASSES, ids=" ".join)
def test_a_depthwise_multiply_accumulate_is_no_cheaper_than_a_regular_one(kind: tuple[str, str, str]) -> None:
    times = [told(*kind, dw_gmacs=0.3 * share) for share in SHARES]
    assert all(less <= more * SLACK for less, more in pairwise(times)), times


@pytest.mark.parametrize("kind", CLASSES, ids=" ".join)
def test_more_activations_never_take_less_where_most_is_depthwise(kind: tuple[str, str, str]) -> None:
    times = [told(*kind, dw_gmacs=0.297, act_in_m=moved, act_out_m=moved) for moved in (0.5, 2.0, 8.0, 32.0, 128.0)]
    assert all(less <= more * SLACK for less, more in pairwise(times)), times


def test_a_share_that_no_measured_model_has_is_flagged() -> None:
    usual, all_of_it = (Workload(gmacs=0.3, dw_gmacs=part, act_in_m=67.0, act_out_m=67.0) for part in (0.03, 0.3))
    assert not any(flag.startswith("depthwise") for flag in predict("pixel8", usual).flags)
    flags = predict("pixel8", all_of_it).flags
    assert any(flag.startswith("depthwise: more than any measured share") for flag in flags)
