"""`bench --suite`: the scripts of a checkout, run one after the other."""

import json
import tomllib
from pathlib import Path

import pytest

import edgedistill

ROOT = Path(__file__).parents[2]
PACKAGE = Path(edgedistill.__file__).parent
SUITE = tomllib.loads((ROOT / "bench" / "suite.toml").read_text())["bench"]


@pytest.fixture
def checkout(tmp_path):
    """A checkout with two small benchmarks; the package in it is the real one."""
    (tmp_path / "edgedistill").symlink_to(PACKAGE)
    bench = tmp_path / "bench"
    bench.mkdir()
    (bench / "good.py").write_text("import sys, pathlib; pathlib.Path(sys.argv[1], 'seen').touch(); print('good ran')")
    (bench / "bad.py").write_text("raise SystemExit('bad says why')")
    (bench / "suite.toml").write_text(
        '[[bench]]\nname = "bad"\ncommand = ["bad.py"]\n[[bench]]\nname = "good"\ncommand = ["good.py", "{work}"]\n'
    )
    return tmp_path


def test_every_script_runs_and_a_failure_is_named(cli, checkout):
    done = cli("bench", "--suite", "--json", cwd=checkout, PYTHONPATH=str(checkout))
    assert done.returncode == 1
    assert "1 of 2 benchmarks failed: bad" in done.stderr
    assert "bad says why" in done.stderr
    assert "good ran" in done.stderr
    assert (checkout / "bench_work" / "seen").exists()
    told = [(item["name"], item["exit_code"]) for item in json.loads(done.stdout)["benches"]]
    assert told == [("bad", 1), ("good", 0)]


def test_one_script_alone(cli, checkout):
    done = cli("bench", "--suite", "--only", "good", cwd=checkout, PYTHONPATH=str(checkout))
    assert done.returncode == 0, done.stderr
    wrong = cli("bench", "--suite", "--only", "god", cwd=checkout, PYTHONPATH=str(checkout))
    assert wrong.returncode == 2
    assert "did you mean 'good'" in wrong.stderr


def test_outside_a_checkout_it_says_what_to_do(cli, checkout):
    (checkout / "bench" / "suite.toml").unlink()
    done = cli("bench", "--suite", cwd=checkout, PYTHONPATH=str(checkout))
    assert done.returncode == 2
    assert "Clone the repository" in done.stderr
    assert cli("bench").returncode == 2


def test_the_suite_is_all_of_the_bench_folder():
    scripts = {path.name for path in (ROOT / "bench").glob("*.py") if not path.name.startswith("_")}
    assert {entry["command"][0] for entry in SUITE} == scripts
    told = (ROOT / "bench" / "README.md").read_text()
    for script in scripts - {"recipe.py"}:
        assert f"| `{script}` |" in told
    names = [entry["name"] for entry in SUITE]
    assert len(names) == len(set(names))
    recorded = {path.stem for path in (ROOT / "bench" / "results").glob("*.json")}
    assert recorded <= set(names)
    assert {"default_build", "gate_experiment", "harness_overhead"} <= recorded
