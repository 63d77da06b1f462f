"""A build for several devices: one file, and a verdict with the lines of every one of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tiny_store: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage but the plan is in the store already: the student is the one that pixel8 alone gets."""
    folder = tmp_path_factory.mktemp("fleet")
    store = shutil.copytree(tiny_store, folder / "store")
    done = cli("build", "--target", "pixel8,galaxy_a14", "--profile", "tiny", "--store", store, "--out", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


def names(document: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in document["checks"]}


def test_every_device_has_its_lines_and_the_size_is_one(bundle: Path) -> None:
    found = names(json.loads((bundle / "gate.json").read_text()))
    for line in ("latency_p95_ms", "peak_memory_mb"):
        assert found[line] == found[f"galaxy_a14.{line}"] == "UNMEASURED"
    assert found["size_mb"] == "PASS"
    assert "galaxy_a14.size_mb" not in found
    assert not any(name.startswith("galaxy_a14.") and "max" in name for name in found)  # its own budget, nothing else


def test_the_bundle_is_judged_the_same_again(bundle: Path, cli: Cli) -> None:
    done = cli("gate", bundle, "--json")
    assert done.returncode == 4, done.stderr
    assert names(json.loads(done.stdout)) == names(json.loads((bundle / "gate.json").read_text()))


def test_the_report_compares_what_was_predicted_for_each(bundle: Path) -> None:
    page = (bundle / "report.html").read_text(encoding="utf-8")
    assert "Predicted before training, measured after" in page
    assert "galaxy_a14: Latency (p95)" in page
    text = (bundle / "report.md").read_text(encoding="utf-8")
    assert "Accuracy, share of the teacher's" in text


def test_a_damaged_fleet_in_the_manifest_is_one_clear_error(bundle: Path, cli: Cli, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["plan"]["fleet"][0]["ram_mb"] = -1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    done = cli("gate", copy)
    assert done.returncode == 2
    assert "plan.fleet" in done.stderr
    assert "ram_mb = -1" in done.stderr
