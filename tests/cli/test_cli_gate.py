"""`gate` against a baseline, on real launches of real files, and every form in which it reports."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import yaml

from edgedistill.cli import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def slow_bundle(host_bundle, tiny_store, tmp_path_factory) -> Path:
    """The bundle with a really slower model in its place: the teacher's float file, of the same signatures."""
    folder = Path(shutil.copytree(host_bundle, tmp_path_factory.mktemp("slow") / "slow"))
    model = next(tiny_store.glob("references-teacher/*/teacher_float.tflite"))
    shutil.copy(model, folder / "model.tflite")
    manifest = json.loads((folder / "manifest.json").read_text())
    sha = hashlib.sha256(model.read_bytes()).hexdigest()
    manifest["files"]["model.tflite"] = sha
    manifest["artifacts"][0] |= {"sha256": sha, "size_mb": model.stat().st_size / 1e6}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "measurements.json").unlink()
    return folder


@pytest.fixture
def stored(host_bundle, tmp_path) -> Path:
    """The build's own launches, as `bench --out` writes them."""
    seen = json.loads((host_bundle / "measurements.json").read_text())["student int8, shipped"]
    (tmp_path / "bench.json").write_text(json.dumps({seen["signature"]: {"measurement": seen}}))
    return tmp_path / "bench.json"


def lines(document: dict) -> dict[str, dict]:
    return {check["name"]: check for check in document["checks"]}


@pytest.fixture(scope="module")
def reported(cli, host_bundle, tmp_path_factory):
    """One gate against itself, in every form; returns the process, its folder and GitHub's summary."""
    folder = tmp_path_factory.mktemp("gate")
    summary = folder / "summary.md"
    done = cli(
        "gate", host_bundle, "--baseline", host_bundle, "--out", folder / "out", "--github", "--tolerance", "0.5",
        GITHUB_STEP_SUMMARY=str(summary),
    )  # fmt: skip
    return done, folder / "out", summary


def test_a_build_against_itself_passes(reported):
    done, out, _ = reported
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((out / "gate.json").read_text())
    assert document["verdict"] == "PASS"
    line = lines(document)["latency_ratio"]
    assert (line["verdict"], line["limit"], line["provenance"]) == ("PASS", 1.5, "measured")
    assert "interleaved pairs" in line["note"]
    sides = document["comparison"]
    assert len(sides["baseline"]["launch_medians_ms"]) == len(sides["candidate"]["launch_medians_ms"]) >= 5
    assert sides["baseline"]["artifact_sha256"] == sides["candidate"]["artifact_sha256"]


def test_every_form_is_written_and_says_the_same(cli, reported):
    done, out, summary = reported
    schema = json.loads(cli("schema", "gate").stdout)
    document = json.loads((out / "gate.json").read_text())
    jsonschema.validate(document, schema)
    assert document["schema_version"] == 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | {"schema_version": 2}, schema)
    suite = ElementTree.parse(out / "gate.junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == (str(len(document["checks"])), "0")
    markdown = (out / "gate.md").read_text()
    assert summary.read_text() == markdown
    for check in document["checks"]:
        assert check["verdict"] in markdown
    assert "Latency against the baseline" in markdown
    assert "Latency against the baseline" in (out / "gate.html").read_text()
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "comparison.pdf").read_bytes().startswith(b"%PDF")
    assert "::error" not in done.stdout
    assert {path.name for path in out.iterdir()} == {
        "gate.json", "gate.junit.xml", "gate.md", "gate.html", "comparison.png", "comparison.pdf",
    }  # fmt: skip


def test_a_really_slower_model_fails_and_a_faster_one_is_not_believed(cli, host_bundle, slow_bundle, tmp_path):
    summary = tmp_path / "summary.md"
    done = cli(
        "gate", slow_bundle, "--baseline", host_bundle, "--json", "--github", "--budget", "size_mb=100",
        GITHUB_STEP_SUMMARY=str(summary),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert document["exit_code"] == 3
    line = lines(document)["latency_ratio"]
    assert line["verdict"] == "FAIL"
    assert line["measured"] > 20
    assert document["comparison"]["latency"]["pairs"] == 5  # nothing more to learn from more
    assert "::error title=FAIL%3A Latency against the baseline::" in done.stderr
    assert "❌" in summary.read_text()

    fast = cli("gate", host_bundle, "--baseline", slow_bundle, "--quiet")
    assert fast.returncode == 3
    assert "latency_ratio_min" in fast.stderr
    assert "another file" in fast.stderr


def test_stored_launches_as_a_baseline(cli, host_bundle, stored):
    done = cli("gate", host_bundle, "--baseline", stored, "--pairs", "5", "--json")
    assert done.returncode == 4, done.stderr
    document = json.loads(done.stdout)
    assert document["comparison"]["interleaved"] is False
    line = lines(document)["latency_ratio"]
    assert line["verdict"] == "INCONCLUSIVE"  # the build's three launches are too few to decide
    assert "3 launches each, not interleaved" in line["note"]
    value = json.loads(stored.read_text())
    for seen in value.values():
        seen["measurement"]["provenance"] = "emulated"
    stored.write_text(json.dumps(value))
    done = cli("gate", host_bundle, "--baseline", stored, "--pairs", "5")
    assert done.returncode == 2
    assert "the baseline is emulated" in done.stderr


def test_the_stored_measurement_of_another_file_is_refused(host_bundle, slow_bundle, stored, capsys):
    assert run(["gate", str(host_bundle), "--measured", str(stored)]) == 0
    assert run(["gate", str(slow_bundle), "--measured", str(stored)]) == 2
    assert "sha256 differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--on", "host"], "no --baseline"),
        (["--aa"], "no --baseline"),
        (["--baseline", "nowhere"], "no such folder"),
        (["--baseline", "BUNDLE", "--tolerance", "5"], "between 0 and 1"),
        (["--baseline", "BUNDLE", "--plausible-speedup", "1"], "above 1"),
        (["--baseline", "BUNDLE", "--on", "moon"], "--on moon"),
        (["--baseline", "BUNDLE/manifest.json"], "holds no measurement"),
        (["--baseline", "BUNDLE/measurements.json", "--aa"], "must be a bundle"),
        (["--measured", "BUNDLE/gate.json"], "holds no measurement"),
        (["--unit", "npu", "--off-unit-max", "7"], "between 0 and 1"),
        (["--github"], "no step of a GitHub workflow"),
    ],
)
def test_what_cannot_be_done_is_refused_with_code_2(host_bundle, arguments, told, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "")
    given = [text.replace("BUNDLE", str(host_bundle)) for text in arguments]
    code, seen = run(["gate", str(host_bundle), *given]), capsys.readouterr()
    assert code == 2, seen.out + seen.err
    assert told in seen.err


def test_a_placement_that_nobody_measured_has_not_passed(host_bundle, capsys):
    assert run(["gate", str(host_bundle), "--unit", "npu", "--json"]) == 4
    assert lines(json.loads(capsys.readouterr().out))["off_unit_time_share"]["verdict"] == "UNMEASURED"


def test_the_gate_again_has_the_paired_interval(host_bundle, tmp_path, capsys):
    """The counts of the build are in the bundle, so a later look says as much about the quality as the build did."""
    folder = Path(shutil.copytree(host_bundle, tmp_path / "bundle"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["profile"]["quality"]["retained_min"] = 0.5
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run(["gate", str(folder), "--json"])
    note = lines(json.loads(capsys.readouterr().out))["retained_min"]["note"]
    assert "paired 95% CI" in note
    counts = manifest["paired"]["tflite"]
    assert sum(counts.values()) == manifest["teacher_quality"]["rows"]
    assert counts["both"] + counts["only_teacher"] == manifest["teacher_quality"]["correct"]


ACTION = yaml.safe_load((ROOT / ".github/actions/gate/action.yml").read_text())


def act(tmp_path: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the action's one step as a GitHub runner does, with bash and its inputs as variables."""
    (step,) = ACTION["runs"]["steps"]
    given = {name: str(entry.get("default", "")) for name, entry in ACTION["inputs"].items()} | inputs
    env = {}
    for name, text in step["env"].items():
        key = text.removeprefix("${{ inputs.").removesuffix(" }}")
        env[name] = given[key]
    assert "${{" not in step["run"]  # nothing from outside is written into the script
    output, summary = tmp_path / "output", tmp_path / "summary"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
        env={**os.environ, **env, "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)},
    )  # fmt: skip
    return done, output.read_text() if output.exists() else ""


def test_the_action_passes_fails_and_tells(host_bundle, tmp_path):
    out = str(tmp_path / "reports")
    common = {"bundle": str(host_bundle), "python": sys.executable, "out": out}
    done, output = act(tmp_path, **common)
    assert done.returncode == 0, done.stdout + done.stderr
    assert output == "verdict=PASS\nexit-code=0\n"
    assert "PASS" in (tmp_path / "summary").read_text()
    (tmp_path / "output").unlink()
    done, output = act(tmp_path, **common, budget="size_mb=0.001", undecided="pass")
    assert (done.returncode, output) == (3, "verdict=FAIL\nexit-code=3\n")
    assert "::error title=FAIL%3A File size::" in done.stdout


def test_the_action_on_what_is_not_decided(tiny_bundle, tmp_path):
    common = {"bundle": str(tiny_bundle), "python": sys.executable}
    assert act(tmp_path, **common)[0].returncode == 4
    (tmp_path / "output").unlink()
    done, output = act(tmp_path, **common, undecided="pass")
    assert (done.returncode, output) == (0, "verdict=UNMEASURED\nexit-code=4\n")
    assert act(tmp_path, **common, undecided="perhaps")[0].returncode == 2


def test_the_action_takes_its_inputs_as_data(tmp_path):
    done, output = act(tmp_path, bundle='$(touch pwned)"; touch pwned; "', python=sys.executable)
    assert done.returncode == 2
    assert output == "verdict=\nexit-code=2\n"
    assert not (tmp_path / "pwned").exists()


def test_what_the_readme_shows_for_ci_is_right(cli):
    github, gitlab = (
        yaml.safe_load(block)
        for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    )
    (step,) = github
    assert (ROOT / step["uses"] / "action.yml").is_file()
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert gitlab["gate"]["allow_failure"] == {"exit_codes": 4}
    _, command, _, *options = gitlab["gate"]["script"][0].split()
    help_text = cli("gate", "--help", COLUMNS="200").stdout
    assert command == "gate"
    assert all(option in help_text for option in options if option.startswith("--"))
    assert gitlab["gate"]["artifacts"]["reports"]["junit"] == f"{options[-1]}/gate.junit.xml"
