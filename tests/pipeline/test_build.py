"""Builds through the command line, as a user and a CI run them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgedistill import catalog, pipeline
from edgedistill.store import Store

ROOT = Path(__file__).parents[2]
SAME = ("manifest.json", "model.tflite", "vocab.txt", "labels.txt", "golden.json", "frozen/student.safetensors")

REFERENCES = ("references-teacher", "references-student")


def command(store: Path, out: Path, *options: str) -> list[str]:
    base = [sys.executable, "-m", "edgedistill", "build", "--target", "pixel8", "--profile", "tiny", "--quiet"]
    return [*base, "--store", str(store), "--out", str(out), *options]


def build(store: Path, out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(store, out, *options),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def first(tiny_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny build; it was made with another hash seed than those here."""
    folder = tmp_path_factory.mktemp("first")
    shutil.copytree(tiny_build / "store", folder / "store")
    shutil.copytree(tiny_build / "pixel8-tiny", folder / "out")
    return folder


def test_a_killed_build_continues_to_the_same_bytes(first: Path, tmp_path: Path) -> None:
    """Of a store with nothing in it but the files that the ledger compares with: half of a build's time, no part of
    what is shipped, and stages like the others.
    """
    store, out = tmp_path / "store", tmp_path / "deep" / "out"
    for stage in REFERENCES:
        shutil.copytree(first / "store" / stage, store / stage)
    for seconds in (4.0, 10.0):
        process = subprocess.Popen(command(store, out), cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists() or (out / "manifest.json").is_file()
    done = build(store, out, PYTHONHASHSEED="2")
    assert done.returncode == 0, done.stderr
    assert all(len(list((store / stage).glob("*/done.json"))) == 1 for stage in REFERENCES)  # they have the same keys
    for name in SAME:
        assert (out / name).read_bytes() == (first / "out" / name).read_bytes(), name


@pytest.fixture(scope="module")
def mended(first: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A quiet build with the honest arms, of a store where one finished stage was damaged: its folder, and its end."""
    folder = tmp_path_factory.mktemp("mended")
    store = shutil.copytree(first / "store", folder / "store")
    (damaged,) = (store / "freeze").glob("*/student.safetensors")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    return folder, build(store, folder / "out", "--baselines")


def test_a_damaged_stage_is_made_again_with_the_same_bytes(
    first: Path, mended: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    folder, done = mended
    assert done.returncode == 0, done.stderr
    (again,) = (folder / "store" / "freeze").glob("*/student.safetensors")
    assert again.read_bytes() == (first / "store" / again.relative_to(folder / "store")).read_bytes()
    assert (folder / "out" / "model.tflite").read_bytes() == (first / "out" / "model.tflite").read_bytes()


def test_a_quiet_build_says_nothing(mended: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert (mended[1].returncode, mended[1].stdout, mended[1].stderr) == (0, "", "")


@pytest.mark.slow
def test_another_seed_is_another_student(first: Path, tmp_path: Path) -> None:
    done = build(first / "store", tmp_path / "out", "--seed", "7")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.tflite").read_bytes() != (first / "out" / "model.tflite").read_bytes()


def test_the_manifest_tells_no_path_time_or_host(tiny_build: Path) -> None:
    text = (tiny_build / "pixel8-tiny" / "manifest.json").read_text()
    assert str(tiny_build) not in text
    assert str(ROOT) not in text
    assert os.uname().nodename not in text
    manifest = json.loads(text)
    assert manifest["parity"]["tflite"]["codes_max_difference"] == 0
    assert manifest["parity"]["tflite"]["scales_max_difference"] == 0
    assert manifest["parity"]["tflite"]["argmax_agreement"] >= 0.99
    assert {item["licence"] for item in manifest["licences"]} == {"Apache-2.0", "CC-BY-4.0"}
    assert set(SAME[1:]) <= set(manifest["files"])
    assert not {"report.html", "measurements.json", "manifest.json"} & set(manifest["files"])


def test_the_golden_samples_are_held_out_rows_and_the_file_answers_them(first: Path) -> None:
    import numpy as np

    from edgedistill.exporters.tflite import load
    from edgedistill.tasks.text_classification import run_file

    golden = json.loads((first / "out" / "golden.json").read_text())
    held_out = next((first / "store" / "data").glob("*/held_out.jsonl"))  # the same rows for every seed
    texts = {json.loads(line)["text"] for line in held_out.read_text().splitlines()}
    runner = load(first / "out" / "model.tflite")
    labels = (first / "out" / "labels.txt").read_text().splitlines()
    assert len(golden) == 16
    for sample in golden:
        assert sample["text"] in texts
        answer = run_file(runner, sample["input_ids"])
        assert np.abs(answer - np.array(sample["answers"]["tflite"]["logits"])).max() < 1e-4
        assert labels[int(answer.argmax())] == sample["answers"]["tflite"]["label"]


def test_honest_arms_are_trained_with_the_same_steps(mended: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = mended
    assert done.returncode == 0, done.stderr
    ledger = {row["name"]: row for row in json.loads((folder / "out" / "report.json").read_text())["ledger"]}
    assert {"labels alone", "label smoothing", "hard pseudo-labels"} <= set(ledger)
    steps = set()
    for stage in ("distil-distil", "labels-alone-distil-distil", "label-smoothing-distil-distil"):
        for facts in (folder / "store" / stage).glob("*/facts.json"):
            steps.add(json.loads(facts.read_text())["curve"][-1][0])
    assert len(steps) == 1


def test_a_static_scheme_is_exact_too(first: Path, tmp_path: Path) -> None:
    """Of a single bucket: its graph is the longest to convert."""
    text = (ROOT / "profiles" / "tiny.toml").read_text().replace("buckets = [8, 16]", "buckets = [16]")
    text = text.replace("[budget]", '[export]\nscheme = { activations = "static_int8" }\n\n[budget]')
    (tmp_path / "static.toml").write_text(text.replace("fake_quant = true", 'fake_quant = true\nranges = "mse"'))
    store = shutil.copytree(first / "store", tmp_path / "store")
    done = build(store, tmp_path / "out", "--target", "rpi5", "--profile", str(tmp_path / "static.toml"))
    assert done.returncode == 0, done.stderr
    parity = json.loads((tmp_path / "out" / "manifest.json").read_text())["parity"]["tflite"]
    assert parity["codes_max_difference"] == 0
    assert parity["argmax_agreement"] >= 0.97


@pytest.mark.slow
def test_ranges_are_observed_by_the_rule_of_their_stage(tmp_path: Path) -> None:
    text = (ROOT / "profiles" / "tiny.toml").read_text()
    text = text.replace("[budget]", '[export]\nscheme = { activations = "static_int8" }\n\n[budget]')
    found = []
    for name, rule in (("plain", ""), ("clipped", '\nranges = "mse"')):
        (tmp_path / f"{name}.toml").write_text(text.replace("fake_quant = true", f"fake_quant = true{rule}"))
        profile, target = catalog.load_profile(str(tmp_path / f"{name}.toml")), catalog.load_target("rpi5")
        _, trained = pipeline.train_student(target, profile, store=Store(tmp_path / "store"), base=tmp_path)
        found.append(load_file(trained.last.folder / "student.safetensors")["classifier.ranges"])
    assert not torch.equal(*found), "with one rule the two runs end with the same bits"
