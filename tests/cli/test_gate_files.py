"""`gate FILE --baseline FILE`: two decoders that belong to no bundle, raced; and how the device is driven."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgedistill import catalog
from edgedistill.pipeline.benching import of_target
from edgedistill.pipeline.race import Place
from edgedistill.runners import How

DECODERS = Path(__file__).parents[1] / "runners"
GGUF, LITERTLM = DECODERS / "tiny_decoder.gguf", DECODERS / "tiny_decoder.litertlm"
SMALL = ("--prompt-tokens", 24, "--answer-tokens", 8)
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_two_decoders_are_raced_by_all_their_speeds(cli: Cli, tmp_path: Path) -> None:
    done = cli("gate", GGUF, "--baseline", GGUF, *SMALL, "--pairs", 5, "--tolerance", "0.9", "--plausible-speedup", 9,
               "--out", tmp_path / "out", "--json")  # fmt: skip
    assert done.returncode in (0, 4), done.stderr  # 4: a machine that differs from itself that much
    document = json.loads(done.stdout)
    assert [line["name"] for line in document["checks"]] == [
        "latency_ratio", "latency_ratio_min", "prefill_ratio", "decode_ratio",
    ]  # fmt: skip
    assert document["comparison"]["interleaved"] is True
    assert document["comparison"]["signature"] == "prompt_24_answer_8"
    assert document["target"] == document["comparison"]["device"]
    assert document["baseline"] == str(GGUF)
    page = (tmp_path / "out" / "gate.html").read_text()
    assert "Time per token written against the baseline" in page


@pytest.mark.slow
def test_stored_launches_of_a_decoder_are_a_baseline(cli: Cli, tmp_path: Path) -> None:
    """The text is the stored one. A speed that no machine has makes the candidate slower."""
    out = tmp_path / "seen.json"
    assert cli("bench", GGUF, "--launches", 5, *SMALL, "--out", out).returncode == 0
    value = json.loads(out.read_text())
    for launch in value["prompt_24_answer_8"]["measurement"]["launches"]:
        launch["tokens_per_s"]["decode"] *= 1e3
    out.write_text(json.dumps(value))
    done = cli("gate", GGUF, "--baseline", out, "--pairs", 5, "--json")
    assert done.returncode == 3, done.stdout + done.stderr
    lines = {line["name"]: line for line in json.loads(done.stdout)["checks"]}
    assert lines["decode_ratio"]["verdict"] == "FAIL"
    assert lines["prefill_ratio"]["verdict"] != "FAIL"
    other = cli("gate", GGUF, "--baseline", out, "--prompt-tokens", 30)
    assert other.returncode == 2
    assert "the candidate has prompt_30_answer_32" in other.stderr
    aa = cli("gate", GGUF, "--baseline", out, "--aa")
    assert (aa.returncode, "must be a model's file" in aa.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "or --baseline FILE, or both"),
        (("--target", "host", "--baseline", GGUF), "Give --target NAME and --measured FILE"),
        (("--baseline", "nowhere.gguf"), "no such file: nowhere.gguf"),
        (("--baseline", DECODERS), "is a folder"),
        (("--baseline", LITERTLM), "a race is between files of one format"),
        (("--baseline", GGUF, "--budget", "size_mb=1"), "judged against no budget"),
        (("--baseline", GGUF, "--unit", "npu"), "--unit"),
        (("--baseline", GGUF, "--unfit", "perhaps"), "one of record, mark, refuse"),
        (("--unfit", "mark"), "--unfit says how to race, and there is no --baseline"),
        (("--reconnect", "5"), "--reconnect says how to race"),
        (("--threads", "2"), "--threads says how to race"),
    ],
)
def test_what_cannot_be_done_with_a_file_is_refused(cli: Cli, arguments: tuple[object, ...], told: str) -> None:
    done = cli("gate", GGUF, *arguments)
    assert done.returncode == 2, done.stdout
    assert told in done.stderr


def test_options_of_a_race_need_one_in_compare_too(cli: Cli) -> None:
    done = cli("compare", GGUF, GGUF, "--cool-down", "5")
    assert done.returncode == 2
    assert "--cool-down says how to race, and there is no --on" in done.stderr


def test_a_target_says_what_becomes_of_a_device_that_is_not_fit() -> None:
    """For such a device only, and an option wins."""
    phone = catalog.load_target("pixel8").model_copy(update={"unfit": "refuse"})
    assert of_target(How(), "adb:x", phone).unfit == "refuse"
    assert of_target(How(unfit="record"), "adb:x", phone).unfit == "record"
    assert of_target(How(), "host", phone).unfit == ""
    assert of_target(How(), "adb:x", catalog.load_target("pixel8")).unfit == ""
    assert Place().of(phone) == Place("adb", phone.threads, How(unfit="refuse"))
    assert Place("host", 2).of(phone) == Place("host", 2, How())
    assert Place().of(None) == Place("host", 1, How())
