"""Own measurements that say nothing, and files of calibrations that nobody wrote: refused, or told as unsure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgedistill.errors import SpecError
from edgedistill.predict import Anchor, Calibration, Workload, calibrate_device, predict, read_calibration

SIZES = [
    Workload(gmacs=gmacs, params_m=4.0, act_in_m=8.0, act_out_m=8.0, n_ops=60) for gmacs in (0.5, 1.0, 2.0, 3.0, 4.0)
]
GOOD: dict[str, Any] = {
    "device": "pixel8", "runtime_build": "litert 2.3.0", "factors": {"litert cpu float": 1.2},
    "anchors": {"litert cpu float": 3}, "spread": {"litert cpu float": 0.1},
    "terms": {"litert cpu float": {"macs_ms": 1.1}},
}  # fmt: skip


def anchors(*times: float) -> list[Anchor]:
    """So many times what is predicted, of workloads of growing size."""
    return [
        Anchor(workload=work, measured=factor * predict("pixel8", work).median)
        for work, factor in zip(SIZES, times, strict=False)
    ]


def width(given: list[Anchor]) -> float:
    found = predict("pixel8", SIZES[2], calibration=calibrate_device("pixel8", given, runtime_build="litert 2.3.0"))
    return found.high / found.low


def test_the_same_measurement_again_is_no_second_witness() -> None:
    once, again = anchors(1.1), anchors(1.1) * 5
    assert calibrate_device("pixel8", again, runtime_build="x").anchors == {"litert cpu float": 1}
    assert width(again) == width(once) > 1.3 * width(anchors(1.1, 1.1, 1.1, 1.1, 1.1))


def test_one_workload_measured_very_differently_is_refused() -> None:
    with pytest.raises(SpecError, match=r"one workload was measured .* more than 3 times apart"):
        calibrate_device("pixel8", [*anchors(1.0), *anchors(9.0)], runtime_build="x")


def test_measurements_that_contradict_each_other_do_not_narrow_the_interval() -> None:
    agreeing, without = width(anchors(1.0, 1.1, 0.9)), predict("pixel8", SIZES[2])
    assert agreeing < without.high / without.low
    assert width(anchors(1.0, 10.0, 0.1)) > without.high / without.low


def test_a_calibration_made_by_hand_is_checked_as_a_file_is() -> None:
    with pytest.raises(SpecError, match="name different classes"):
        Calibration(**{**GOOD, "anchors": {}, "spread": {}})
    with pytest.raises(SpecError, match=r"factors.litert cpu float = -1"):
        Calibration(**{**GOOD, "factors": {"litert cpu float": -1.0}})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"factors": {"litert cpu float": 1e-9}}, r"factors.litert cpu float = 1e-09"),
        ({"factors": {"litert cpu float": 1e9}}, r"factors.litert cpu float = 1000000000"),
        ({"terms": {"litert cpu float": {"macs_ms": 1e9}}}, r"terms.litert cpu float.macs_ms"),
        ({"terms": {"banana": {"macs_ms": 1.0}}}, "name different classes"),
        ({"spread": {"litert cpu float": 1e12}}, r"spread.litert cpu float"),
        (
            {name: {"later class": 2} for name in ("factors", "anchors", "spread")} | {"terms": {}},
            "'later class' is none",
        ),
    ],
)
def test_what_no_calibration_says_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    assert read_calibration(path).factors == GOOD["factors"]
    path.write_text(json.dumps({**GOOD, **changed}), encoding="utf-8")
    with pytest.raises(SpecError, match=message):
        read_calibration(path)


@pytest.mark.parametrize("kind", ["pipe", "endless", "large", "folder", "dangling", "loop"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        path.write_text(json.dumps(GOOD) + " " * 10**7, encoding="utf-8")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "gone.json")
    with pytest.raises(SpecError, match=r"own.json: not a calibration"):
        read_calibration(path)
