"""A device that is corrected by its own measurements: what anchors change, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedistill.errors import SpecError
from edgedistill.predict import (
    Anchor,
    DeviceSpecs,
    LlmWorkload,
    Workload,
    calibrate_device,
    predict,
    read_calibration,
)
from edgedistill.predict.anchors import middle
from edgedistill.predict.calibrate import chips
from edgedistill.predict.update import update

BOARD = DeviceSpecs(name="my board", cpu="4xA55@1.8")
SIZES = [{"gmacs": 0.06, "params_m": 2.5}, {"gmacs": 0.4, "params_m": 5.0}, {"gmacs": 4.0, "params_m": 25.0}]


def test_anchors_rescale_a_device(tmp_path: Path) -> None:
    """A board exactly twice as slow as predicted: three anchors find most of it, and a file brings it back."""
    works = [Workload(**one, runtime="ncnn") for one in SIZES]
    anchors = [Anchor(workload=one, measured=2 * predict(BOARD, one).median) for one in works]
    file = tmp_path / "board.json"
    found = calibrate_device(BOARD, anchors, runtime_build="ncnn 20240410", out=file)
    assert found.factors["ncnn cpu float"] == pytest.approx(2.0, rel=0.06)
    assert read_calibration(file) == found
    work = Workload(gmacs=1.0, runtime="ncnn")
    plain, scaled = predict(BOARD, work), predict(BOARD, work, calibration=found)
    assert scaled.median == pytest.approx(2.0 * plain.median, rel=0.06)
    assert (scaled.level, plain.level) == ("calibrated", "spec only")
    assert scaled.high / scaled.low < plain.high / plain.low
    assert "ncnn 20240410" in scaled.method
    other = Workload(gmacs=1.0, runtime="litert")
    assert predict(BOARD, other, calibration=found).median == predict(BOARD, other).median


def test_a_device_whose_layers_are_dear_is_learnt_as_such() -> None:
    """Five anchors of a board where every layer costs three times as much: small students slow down most."""
    works = [Workload(**one, runtime="ncnn") for one in [*SIZES, {"gmacs": 0.02, "n_ops": 200}, {"gmacs": 9.0}]]
    plain = [predict(BOARD, one) for one in works]
    anchors = [
        Anchor(workload=one, measured=seen.median + 2 * seen.terms["layers_ms"])
        for one, seen in zip(works, plain, strict=True)
    ]
    found = calibrate_device(BOARD, anchors, runtime_build="x")
    assert found.terms["ncnn cpu float"]["layers_ms"] > 1.3
    ratios = [
        predict(BOARD, one, calibration=found).median / seen.median for one, seen in zip(works, plain, strict=True)
    ]
    one_factor = float(np.exp(middle([np.log(a.measured / p.median) for a, p in zip(anchors, plain, strict=True)])))
    for n in (3, 4):  # the student of most layers, and that of most work
        wanted = anchors[n].measured / plain[n].median
        assert abs(np.log(ratios[n] / wanted)) < 0.7 * abs(np.log(one_factor / wanted))


def test_the_cross_validated_update_is_the_one_that_users_get() -> None:
    draw = np.random.default_rng(5)
    parts = draw.uniform(0.5, 8.0, (4, 3, 5))
    log_ms = np.log(parts.sum(2)) + draw.normal(0, 0.4, (4, 3))
    speeds, terms = chips.updates(parts, log_ms)
    for n in range(4):
        pairs = [
            ({f"{k}_ms": v for k, v in enumerate(row)}, float(np.exp(y)))
            for row, y in zip(parts[n], log_ms[n], strict=True)
        ]
        speed, change = update(pairs)
        assert speed == pytest.approx(speeds[n], abs=1e-9)
        assert list(change.values()) == pytest.approx(terms[n].tolist(), abs=1e-9)


def test_one_wrong_anchor_moves_an_update_little() -> None:
    terms = {"macs_ms": 10.0, "layers_ms": 1.0}
    good = [(terms, 11.0)] * 4
    assert abs(update([*good, (terms, 500.0)])[0]) < 0.25
    assert update(good)[0] == pytest.approx(0.0, abs=1e-9)


def test_few_own_measurements_leave_a_wide_interval() -> None:
    work, *others = (Workload(gmacs=gmacs, params_m=4.0, runtime="ncnn") for gmacs in (1.0, 0.5, 0.7, 1.5, 2.0))
    widths = []
    for count in (1, 3, 5):
        anchors = [Anchor(workload=one, measured=2 * predict(BOARD, one).median) for one in (work, *others)[:count]]
        seen = predict(BOARD, work, calibration=calibrate_device(BOARD, anchors, runtime_build="x"))
        widths.append(seen.high / seen.low)
    plain = predict(BOARD, work)
    assert widths[2] <= widths[1] < widths[0] < plain.high / plain.low


def test_one_odd_anchor_does_not_decide() -> None:
    assert middle([0.7, 0.7, 3.0]) == pytest.approx(0.9, abs=0.25)
    assert middle([0.5] * 5) == pytest.approx(0.5, abs=0.03)


def test_anchors_of_language_models() -> None:
    work = LlmWorkload(params_b=1.2)
    anchor = Anchor(workload=work, measured=predict("pixel8", work).median / 2, quantity="decode_tokens_per_s")
    found = calibrate_device("pixel8", [anchor] * 3, runtime_build="llama.cpp b8999")
    assert found.factors["llm decode cpu"] == pytest.approx(2.0, rel=0.1)
    assert predict("pixel8", work, calibration=found).median == pytest.approx(anchor.measured, rel=0.1)


def test_wrong_anchors_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="0 anchors"):
        calibrate_device(BOARD, [], runtime_build="x")
    odd = Anchor(workload=LlmWorkload(params_b=1.0), measured=3.0, quantity="speed")
    with pytest.raises(SpecError, match="decode_tokens_per_s"):
        calibrate_device("pixel8", [odd], runtime_build="x")
    with pytest.raises(SpecError, match="measured"):
        Anchor.decode({"workload": {"gmacs": 1.0}, "measured": "12 ms"}, where="anchor")
    file = tmp_path / "calibration.json"
    for text in (
        "{",
        "[]",
        "{}",
        '{"device": "x", "runtime_build": "y", "factors": {"a": -1}, "anchors": {}, "spread": {}}',
    ):
        file.write_text(text)
        with pytest.raises(SpecError, match=r"calibration\.json"):
            read_calibration(file)
    with pytest.raises(SpecError, match="not a calibration"):
        read_calibration(tmp_path / "nowhere.json")
