"""Wrong values of the public call: each one line that names what is wrong, none believed and none a traceback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgedistill.errors import SpecError
from edgedistill.predict import LlmWorkload, Workload, predict

BATTERY = "battery_percent_per_hour"
WORK = Workload(gmacs=1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Workload(gmacs=True), "gmacs = True: true and false are no numbers"),
        (lambda: LlmWorkload(params_b=1.0, prompt_tokens=True), "prompt_tokens = True"),
        (lambda: Workload(gmacs=1.0, n_ops=5, n_conv=50), "n_conv = 50 is more than n_ops = 5"),
        (lambda: LlmWorkload(params_b=1.5, embedding_params_b=5.0), "embedding_params_b = 5 is more than params_b"),
        (lambda: predict("pixel8", LlmWorkload(model="qwen2.5-1.5b", active_params_b=9.0)), "of 'qwen2.5-1.5b'"),
        (lambda: predict("pixel8", Workload(model="resnet50", dw_gmacs=50.0)), "more than gmacs = 4.* of 'resnet50'"),
        (lambda: predict("pixel8", WORK, 5), "quantity = 5: give a name, one of latency_ms"),  # type: ignore[arg-type]
        (lambda: predict("pixel8", WORK, calibration={"a": 1}), "give what `calibrate_device`"),  # type: ignore[arg-type]
        (lambda: predict("pixel8", WORK, calibration="own.json"), "or `read_calibration` returns"),  # type: ignore[arg-type]
        (lambda: predict("pixel8", WORK, BATTERY, per_hour=True), "got True"),
        (lambda: predict("pixel8", WORK, BATTERY, per_hour="60"), "got '60'"),  # type: ignore[arg-type]
        (lambda: predict("pixel8", WORK, BATTERY, per_hour=[60]), r"got \[60\]"),  # type: ignore[arg-type]
        (lambda: predict("pixel8", WORK, BATTERY, per_hour=float("nan")), "got nan"),
        (lambda: predict("pixel8", WORK, BATTERY, per_hour=10**400), "got 1000"),
        (lambda: predict("pixel8", WORK, BATTERY, per_hour=np.array([1.0, 2.0])), "got array"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as seen:
        call()
    assert "\n" not in str(seen.value)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numbers_of_numpy_are_numbers(kind: Callable[[float], Any]) -> None:
    plain, numpy = (Workload(gmacs=as_is(2), res=as_is(224)) for as_is in (float, kind))
    assert predict("pixel8", numpy).median == predict("pixel8", plain).median
    hours = [predict("pixel8", plain, BATTERY, per_hour=number).median for number in (3600.0, kind(3600))]
    assert hours[0] == hours[1]


@pytest.mark.parametrize("params_m", [1e-9, 1e-3, 1e6])
def test_what_is_told_from_a_size_that_no_model_has_is_flagged_and_wider(params_m: float) -> None:
    usual, odd = (predict("pixel8", Workload(gmacs=1.0, params_m=size)) for size in (4.0, params_m))
    assert any(flag.startswith("params_m: outside the calibrated range") for flag in odd.flags)
    assert not any(flag.startswith("params_m: outside") for flag in usual.flags)
    assert odd.high / odd.low > 2 * usual.high / usual.low
    assert 0.1 < odd.median / usual.median < 100


def test_fewer_parameters_than_any_model_has_add_no_activations() -> None:
    times = [predict("pixel8", Workload(gmacs=1.0, params_m=size)).median for size in (1e-9, 1e-6, 1e-3)]
    assert max(times) < 1.01 * min(times)
