"""The iPhone's contract on Linux: the program against a stand-in of Apple's tooling, and the real tooling's calls."""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import coremltools_parts
import pytest
from phones import QUICK

from edgedistill.errors import EdgedistillError, InfrastructureError, MissingDependency, SpecError, StageError
from edgedistill.runners import How, Job, ios
from edgedistill.specs import Measurement, Provenance


@pytest.fixture
def package(tmp_path: Path) -> Job:
    folder = tmp_path / "model.mlpackage"
    folder.mkdir()
    (folder / "Manifest.json").write_text("{}")
    ids = [[1, 2, 3, 0], [4, 5, 0, 0]]
    return Job(folder, "any", {"input_ids": ids}, expected={"logits": [[0.5, 1.0], [2.0, 2.5]]})


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine for a Mac, with a phone."""
    monkeypatch.setattr(ios, "sys", SimpleNamespace(platform="darwin", executable=sys.executable))
    monkeypatch.setenv("PYTHONPATH", str(coremltools_parts.write(tmp_path / "standin")))
    monkeypatch.setenv("EDGEDISTILL_IOS_TEAM", "TEAM1")


def bench(job: Job, where: str = "", **how: str) -> Measurement:
    return ios.measure_many({"m": job}, launches=2, timing=QUICK, how=How(where=where, **how))["m"]


def test_a_phone_behind_a_mac(package: Job, mac: None) -> None:
    seen = bench(package)
    assert seen.provenance is Provenance.MEASURED
    assert all(len(launch) >= QUICK.runs_min for launch in seen.samples_ns)
    assert set(seen.samples_ns[0]) == {1_000_000, 1_250_000, 1_500_000}
    assert seen.load_ms == 120.5
    assert seen.peak_memory_mb is None
    assert seen.fingerprint is not None
    assert (seen.fingerprint.runner, seen.fingerprint.model) == ("ios", "Mine")
    assert seen.fingerprint.os_build == "iOS 18.2 (22C152)"
    assert "udid-Mine" not in seen.model_dump_json()
    assert seen.outputs is not None
    assert (seen.outputs.max_abs_difference, seen.outputs.labels_agree) == (0.0, 2)
    assert [(item.unit, item.operators, item.time_share) for item in seen.placement] == [
        ("neural engine", 2, 0.9), ("cpu", 1, 0.1)]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "where", "kind", "message"),
    [
        ({"STANDIN_PHONES": "A B"}, "", SpecError, r"several iPhones .*\(A, B\)"),
        ({}, "Yours", InfrastructureError, "no connected iPhone 'Yours'; connected now: Mine"),
        ({"STANDIN_MODE": "disabled"}, "Mine", InfrastructureError, "developer mode is off"),
        ({"EDGEDISTILL_IOS_TEAM": ""}, "udid-Mine", SpecError, "EDGEDISTILL_IOS_TEAM"),
        ({"STANDIN_FAILS": "the model does not compile"}, "", StageError, "cannot load or run .*does not compile"),
        ({"STANDIN_FAILS": "devicectl: the device was disconnected"}, "", InfrastructureError, "the phone was lost"),
    ],
)
def test_what_goes_wrong_on_a_mac(
    package: Job, mac: None, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], where: str,
    kind: type[EdgedistillError], message: str,
) -> None:  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(kind, match=message):
        bench(package, where)


def test_elsewhere_it_says_what_to_do(package: Job, model: Path) -> None:
    with pytest.raises(MissingDependency, match="Copy the bundle to a Mac") as caught:
        bench(package)
    assert caught.value.exit_code == 2
    with pytest.raises(SpecError, match="--on ios runs coreml files only"):
        bench(Job(model, "length_8", {"input_ids": [[1]]}))


def test_apples_tooling_has_the_calls_that_the_program_makes() -> None:
    """Read from its source: it cannot be run here."""
    found = find_spec("coremltools")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the extra `coreml`")
    base = Path(found.submodule_search_locations[0], "models", "ml_program", "experimental")
    calls = {
        "remote_device.py": {"get_connected_devices": {"device_type"}, "prepare_for_model_debugging": {"credentials"}},
        "perf_utils.py": {
            "benchmark_load": {"iterations"},
            "benchmark_predict": {"inputs", "iterations", "warmup"},
            "benchmark_operation_execution": {"inputs", "iterations", "warmup"},
        },
        "async_wrapper.py": {
            "from_spec_or_path": {"spec_or_path", "weights_dir", "compute_units", "function_name", "device"},
            "predict": {"inputs"},
        },
    }
    for name, wanted in calls.items():
        tree = ast.parse((base / name).read_text())
        known = {
            node.name: {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in wanted
        }
        assert all(arguments <= known[call] for call, arguments in wanted.items()), (name, known)
