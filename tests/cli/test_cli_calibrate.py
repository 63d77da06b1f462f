"""`edgedistill calibrate` as a person runs it, and what plans make of it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from saying import Say, document


def test_own_measurements_rescale_the_host(say: Say, tiny_bundle: Path, tmp_path: Path) -> None:
    def latency() -> dict[str, Any]:
        plan = document(say, "-t", "host", "-p", "tiny")["plan"]
        return next(line for line in plan["chosen"]["predictions"] if line["quantity"] == "latency_p95_ms")  # type: ignore[no-any-return]

    before = latency()
    timed = json.loads((tiny_bundle / "measurements.json").read_text())["student int8, shipped"]
    lengths = {}
    for factor, name in ((2.0, "length_8"), (2.1, "length_16"), (1.9, "again")):
        typical = factor * before["median"]
        samples = [typical] * 5 + [4 * typical] * 15  # disturbed: another process has the core most of the time
        signature = name if name.startswith("length") else "length_16"
        lengths[name] = {"measurement": {**timed, "signature": signature, "samples_ms": samples}}
    (tmp_path / "seen.json").write_text(json.dumps(lengths))
    code, out, err = say("calibrate", tiny_bundle, tmp_path / "seen.json", "--target", "host")
    assert code == 0, err
    assert re.search(r"student latency_p95_ms +x[12]\.\d+ +3", out)
    after = latency()
    assert 1.7 < after["median"] / before["median"] < 2.4
    assert after["high"] / after["low"] < before["high"] / before["low"]
    assert f"own measurements ({timed['runtime']})" in after["method"]
    _, out, _ = say("plan", "-t", "host", "-p", "tiny")
    assert f"host: predictions rescaled by measurements on it ({timed['runtime']}; 3 anchors)" in " ".join(out.split())
    older = ("calibrate", tiny_bundle, tmp_path / "seen.json", "-t", "host", "--runtime-build", "litert 1.0")
    assert f"plans for host use that of {timed['runtime']}, the runtime" in " ".join(say(*older)[1].split())
    assert latency() == after


def test_anchors_as_json_rescale_a_phone(say: Say, tmp_path: Path) -> None:
    def median() -> float:
        plan = document(say, "-t", "pixel8", "-p", "tiny")["plan"]
        return float(plan["chosen"]["predictions"][0]["median"])

    before = median()
    known = {"params_m": 4, "act_in_m": 5, "act_out_m": 5, "n_ops": 60}
    anchors = [{"workload": {"gmacs": g, **known}, "measured": 1000.0 * g} for g in (0.3, 1.0, 3.0)]
    (tmp_path / "anchors.json").write_text(json.dumps(anchors))
    code, _, err = say("calibrate", tmp_path / "anchors.json", "--target", "pixel8")
    assert (code, "--runtime-build" in err) == (2, True)
    code, out, err = say("calibrate", tmp_path / "anchors.json", "-t", "pixel8", "--runtime-build", "litert 2.3.0")
    assert code == 0, err
    factor = float(re.search(r"litert cpu float +x([\d.]+)", out)[1])  # type: ignore[index]
    assert factor > 2
    assert median() / before == pytest.approx(factor, rel=0.01)


def test_the_calibration_of_another_device_is_refused(say: Say, tmp_path: Path) -> None:
    path = tmp_path / "store" / "calibrations" / "host" / "litert.json"
    path.parent.mkdir(parents=True)
    told = {"factors": 2, "anchors": 1, "spread": 0}
    values = {"device": "pixel8", "runtime_build": "x", **{key: {"litert cpu float": one} for key, one in told.items()}}
    path.write_text(json.dumps(values))
    code, out, err = say("plan", "-t", "host", "-p", "tiny")
    assert (code, out) == (2, "")
    assert f"{path}: holds what was measured on 'pixel8', in the folder of 'host'" in err


BROKEN = {
    "not JSON": ("{", "not a calibration"),
    "a list": ("[]", "a JSON object is expected"),
    "too deep": ("[" * 200_000, "not a calibration"),
    "a key": ('{"device": "host", "factor": {}}', "unknown key 'factor'; did you mean 'factors'"),
    "below 0": (
        '{"device": "host", "runtime_build": "x", "factors": {"a": -1}, "anchors": {"a": 1}, "spread": {"a": 0}}',
        "greater than 0",
    ),
    "torn": (
        '{"device": "host", "runtime_build": "x", "factors": {"a": 2}, "anchors": {}, "spread": {}}',
        "different classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_corrupt_calibration_is_one_clear_error(say: Say, tmp_path: Path, case: str) -> None:
    text, told = BROKEN[case]
    path = tmp_path / "store" / "calibrations" / "host" / "litert.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    code, out, err = say("plan", "-t", "host", "-p", "tiny")
    assert (code, out) == (2, "")
    assert told in err
    assert str(path) in err


def test_a_figure_of_this_machine_does_not_calibrate_a_phone(say: Say, tiny_bundle: Path, tmp_path: Path) -> None:
    code, _, err = say("calibrate", tiny_bundle, "--target", "pixel8")
    assert code == 2
    assert "one says nothing about the other" in err
    (tmp_path / "x.json").write_text('{"length_8": {"latency_p50_ms": 1}}')
    code, _, err = say("calibrate", tiny_bundle, tmp_path / "x.json", "--target", "host")
    assert code == 2
    assert "'length_8' holds no measurement" in err
    code, _, err = say("calibrate", tmp_path / "nothing.json", "--target", "host")
    assert code == 2
    assert "cannot be read" in err


def test_a_figure_of_another_file_than_the_shipped_one_does_not_calibrate(
    say: Say, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Plans foretell the shipped file; an .onnx beside it takes another time."""
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    content = (bundle / "model.tflite").read_bytes() + b"0"
    (bundle / "model.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    other = {**manifest["artifacts"][0], "path": "model.onnx", "format": "onnx", "sha256": digest}
    manifest["artifacts"].append(other)
    manifest["parity"]["onnx"] = manifest["parity"]["tflite"]
    manifest["files"]["model.onnx"] = digest
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    timed = json.loads((bundle / "measurements.json").read_text())["student int8, shipped"]
    seen = {"all": {"measurement": {**timed, "artifact_sha256": digest}}}
    (tmp_path / "seen.json").write_text(json.dumps(seen))
    code, _, err = say("calibrate", bundle, tmp_path / "seen.json", "--target", "host")
    assert code == 2
    assert "measured model.onnx, and plans foretell model.tflite" in " ".join(err.split())
