"""What README shows is run, and what it claims is there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edgedistill import errors
from edgedistill.predict import BATTERY, LANGUAGE, VISION, DeviceSpecs, Forecast, LlmWorkload, Workload

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def console_lines() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("line", console_lines())
def test_a_line_of_the_console_block_runs(line: str, workplace: Path, tiny_store: Path) -> None:
    """Stages that another build finished are kept: `tiny_build` is one on a cold store."""
    program, *arguments = shlex.split(line)
    done = subprocess.run(
        [str(BIN / program), *arguments],
        cwd=workplace,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "EDGEDISTILL_STORE": str(tiny_store)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_python_block_runs_and_needs_no_numpy() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = f"{block}\nimport sys\nassert not {{'numpy', 'torch'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "decode_tokens_per_s" in done.stdout


def test_every_name_of_a_prediction_in_it_exists() -> None:
    part = README.split("## Predictions alone")[1].split("## In CI")[0]
    fields = {*Workload.model_fields, *LlmWorkload.model_fields, *DeviceSpecs.model_fields, *Forecast.model_fields}
    known = {*fields, *VISION, *LANGUAGE, BATTERY, "DeviceSpecs", "SpecError", "edgedistill.predict"}
    named = set(re.findall(r"`([A-Za-z_.0-9]+)`", part))
    assert len(named) > 30
    assert not named - known
    assert {*VISION, *LANGUAGE, BATTERY} <= named


def test_the_two_commands_are_those_of_the_project() -> None:
    assert "python -m venv .venv && .venv/bin/pip install -e . && .venv/bin/edgedistill build --target pixel8" in README
    assert ".venv/bin/pip install -e '.[test]' && .venv/bin/pytest" in README


def test_the_exit_codes_are_those_of_the_errors() -> None:
    table = {int(code) for code in re.findall(r"(?m)^\| (\d+) \|", README)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {0, *(kind.exit_code for kind in kinds if issubclass(kind, errors.EdgedistillError))} == table
    assert "| 130, 143 |" in README


def test_every_path_it_names_exists() -> None:
    named = set(re.findall(r"`((?:tests|bench|edgedistill|targets|profiles)/[\w./-]*)`", README))
    assert len(named) > 12
    missing = {name for name in named if not (ROOT / name).exists() and "_out" not in name}
    assert not missing


@pytest.mark.slow
@pytest.mark.timeout(1900)
def test_the_main_job_on_a_cold_store_meets_what_the_project_promises(tmp_path: Path) -> None:
    command = [str(BIN / "edgedistill"), "build", "--target", "pixel8", "--quiet"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env={**os.environ, "EDGEDISTILL_STORE": str(tmp_path / "store")},
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "edgedistill_out" / "pixel8-default" / "manifest.json").read_text())
    assert manifest["artifacts"][0]["size_mb"] <= 1.0
    assert manifest["artifact_quality"]["accuracy"] >= 0.985 * manifest["teacher_quality"]["accuracy"]
    assert manifest["float_quality"]["accuracy"] - manifest["artifact_quality"]["accuracy"] <= 0.003
    parity = manifest["parity"]["tflite"]
    assert parity["codes_max_difference"] == 0
    assert parity["scales_max_difference"] == 0
    assert parity["argmax_agreement"] >= 0.995
