"""`compare` on two real bundles, and on files of measurements."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from edgedistill.specs import Rights


def by_name(document: dict) -> dict[str, dict]:
    return {line["name"]: line for line in document["lines"]}


def test_two_bundles(cli, tiny_bundle, host_bundle, tmp_path):
    done = cli("compare", tiny_bundle, host_bundle, "--json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == document
    jsonschema.validate(document, json.loads(cli("schema", "compare").stdout))
    lines = by_name(document)
    assert set(lines) == {"size_mb", "accuracy", "latency_p50_ms", "peak_memory_mb"}
    assert (lines["size_mb"]["verdict"], lines["size_mb"]["change"]) == ("same", 1.0)
    accuracy = lines["accuracy"]
    assert accuracy["change"] == 0
    assert accuracy["low"] < 0 < accuracy["high"]
    assert "0 only by A, 0 only by B; paired" in accuracy["note"]
    assert accuracy["high"] - accuracy["low"] < 0.1  # 0.24 without the pairs: the same file twice
    assert lines["latency_p50_ms"]["low"] <= lines["latency_p50_ms"]["change"] <= lines["latency_p50_ms"]["high"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "compare.json", "compare.md", "compare.html", "comparison.png", "comparison.pdf",
    }  # fmt: skip


def test_a_race_of_two_bundles(cli, tiny_bundle, host_bundle):
    done = cli("compare", tiny_bundle, host_bundle, "--on", "host", "--pairs", "5", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["comparison"]["interleaved"] is True
    lines = by_name(document)
    assert "5 interleaved pairs" in lines["latency_p50_ms"]["note"]
    memory = lines["peak_memory_mb"]  # of the raced launches, not of the builds'
    assert "5 launches each" in memory["note"]
    assert memory["low"] <= memory["change"] <= memory["high"]


def test_rows_that_only_one_of_two_builds_answers_are_counted(cli, tiny_bundle, host_bundle, tmp_path):
    """The accuracies are equal, and the rows are not: the interval is as wide as these rows make it."""
    other = Path(shutil.copytree(host_bundle, tmp_path / "other"))
    path = other / "manifest.json"
    manifest = json.loads(path.read_text())
    rows = Rights.decode(manifest["right"]["tflite"], manifest["artifact_quality"]["rows"])
    assert sum(rows) == manifest["artifact_quality"]["correct"]
    manifest["right"]["tflite"] = Rights.encode(rows[::-1])
    path.write_text(json.dumps(manifest))
    same, crossed = (
        by_name(json.loads(cli("compare", tiny_bundle, one, "--json").stdout))["accuracy"]
        for one in (host_bundle, other)
    )
    assert crossed["change"] == same["change"] == 0
    assert crossed["high"] - crossed["low"] > 1.5 * (same["high"] - same["low"])
    manifest["right"] = {}
    path.write_text(json.dumps(manifest))
    older = by_name(json.loads(cli("compare", tiny_bundle, other, "--json").stdout))["accuracy"]
    assert "does not use that they are the same" in older["note"]
    for damage in ("zz", "f" * 99, "0"):
        manifest["right"] = {"tflite": damage}
        path.write_text(json.dumps(manifest))
        refused = cli("compare", tiny_bundle, other)
        assert refused.returncode == 2
        assert "right.tflite" in refused.stderr


def test_what_got_better_and_worse_is_told(cli, tiny_bundle, host_bundle, tmp_path):
    better = Path(shutil.copytree(host_bundle, tmp_path / "better"))
    path = better / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["artifact_quality"] = {"accuracy": 1.0, "low": 0.963, "high": 1.0, "correct": 100, "rows": 100}
    manifest["right"] = {"tflite": "f" * 25}
    path.write_text(json.dumps(manifest))
    seen = json.loads((better / "measurements.json").read_text())
    shipped = seen["student int8, shipped"]
    shipped["launch_medians_ms"] = [value / 3 for value in shipped["launch_medians_ms"]]
    (better / "measurements.json").write_text(json.dumps(seen))
    there, back = cli("compare", tiny_bundle, better, "--json"), cli("compare", better, tiny_bundle)
    lines = by_name(json.loads(there.stdout))
    assert lines["accuracy"]["verdict"] == lines["latency_p50_ms"]["verdict"] == "better"
    assert back.returncode == 0  # it fails nothing
    assert back.stdout.count(" worse ") == 2


def test_other_rows_and_other_devices_are_not_compared(cli, tiny_bundle, host_bundle, tmp_path):
    other = Path(shutil.copytree(host_bundle, tmp_path / "other"))
    path = other / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["data"]["stage"] = "of other rows"
    path.write_text(json.dumps(manifest))
    seen = json.loads((other / "measurements.json").read_text())
    seen["student int8, shipped"]["device"] = "host: another processor"
    seen["student int8, shipped"]["fingerprint"] = None
    (other / "measurements.json").write_text(json.dumps(seen))
    lines = by_name(json.loads(cli("compare", tiny_bundle, other, "--json").stdout))
    assert lines["accuracy"]["verdict"] == lines["latency_p50_ms"]["verdict"] == "not comparable"
    assert lines["latency_p50_ms"]["a"] > 0
    assert lines["latency_p50_ms"]["b"] > 0


def test_two_files_of_measurements(cli, tiny_bundle, tmp_path):
    seen = json.loads((tiny_bundle / "measurements.json").read_text())["student int8, shipped"]
    files = []
    for name, factor in (("a.json", 1.0), ("b.json", 2.0)):
        medians = [factor * value for value in seen["launch_medians_ms"] for _ in range(2)]
        measurement = seen | {"launch_medians_ms": medians}
        files.append(tmp_path / name)
        files[-1].write_text(json.dumps({seen["signature"]: {"measurement": measurement}}))
    done = cli("compare", *files, "--json")
    assert done.returncode == 0, done.stderr
    lines = by_name(json.loads(done.stdout))
    assert "size_mb" not in lines
    assert lines["latency_p50_ms"]["verdict"] == "worse"
    assert lines["latency_p50_ms"]["change"] == pytest.approx(2)
    raced = cli("compare", *files, "--on", "host")
    assert raced.returncode == 2
    assert "both must be bundles" in raced.stderr
    (tmp_path / "no.json").write_text("{}")
    assert cli("compare", files[0], tmp_path / "no.json").returncode == 2
