"""`edgedistill plan` as a person runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from saying import Say, document

from edgedistill.cli import run

KEYS = {
    "": {"schema_version", "plan", "teacher", "stages"},
    "plan": {"target", "fleet", "profile", "budget", "chosen", "candidates", "search", "front", "ties", "assistants",
             "stages", "formats", "unmeasured", "notes", "efforts"},
    "plan.chosen": {"config", "scheme", "parameters", "macs", "size", "work", "predictions", "others", "quality",
                    "violations", "uncertain", "teacher_ratio"},
    "plan.chosen.predictions.0": {"quantity", "unit", "median", "low", "high", "confidence", "method", "terms",
                                  "level"},
    "plan.search": {"combinations", "invalid", "evaluated", "excluded", "feasible", "sure"},
    "plan.front.0": {"student", "size_mb", "latency_p95_ms", "peak_memory_mb", "energy_mj", "expected_quality", "meets",
                     "chosen"},
    "plan.efforts.0": {"machine", "seconds", "seconds_low", "seconds_high", "peak_memory_mb", "method"},
    "plan.chosen.quality": {"median", "low", "high", "confidence", "method"},
}  # fmt: skip


def test_the_document_keeps_its_shape(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(say, "-t", "pixel8", "-p", "default")
    assert found["schema_version"] == 1
    assert run(["schema", "plan"]) == 0
    schema = json.loads(capsys.readouterr().out)
    for one in (found, document(say, "-t", "pixel8,iphone15", "--search", "--gpu", "t4", "--why")):
        jsonschema.validate(one, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**found, "plan": {**found["plan"], "front": [{"size": 1}]}}, schema)
    for path, keys in KEYS.items():
        at: Any = found
        for part in path.split(".") if path else ():
            at = at[int(part)] if part.isdigit() else at[part]
        assert set(at) == keys, path


def test_a_whole_family_is_searched_without_a_slow_import(cli: Any, tmp_path: Path) -> None:
    """What keeps it within two seconds, which `bench/search.py` times; `plan/test_search.py` counts the calls."""
    done = cli("plan", "--target", "pixel8", "--search", "--budget", "size_mb=8,latency_p95_ms=15,energy_mj=20",
               "--store", tmp_path / "store", PYTHONPROFILEIMPORTTIME="1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    imported = [line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert 300 < len(imported) <= 700
    assert {name.partition(".")[0] for name in imported}.isdisjoint({"numpy", "torch", "transformers", "matplotlib"})
    counts = re.search(r"searched: ([\d,]+) combinations: ([\d,]+) are no student, ([\d,]+) excluded by a bound, "
                       r"([\d,]+) evaluated", done.stdout)  # fmt: skip
    assert counts is not None
    total, *parts = (int(text.replace(",", "")) for text in counts.groups())
    assert total >= 100_000  # with no more vocabularies than the texts can fill
    assert sum(parts) == total


def test_the_views_show_choice_stages_intervals_front_and_ties(say: Say) -> None:
    code, out, _ = say("plan", "-t", "pixel8", "--search", "--optimize-for", "latency", "--gpu", "t4", "--explain")
    assert code == 0
    for word in ("├── prepare", "└── write and judge", "quality kept", "(80%)", "students that none beats", "t4",
                 "this machine, 2 threads", "too near to rank", "tie in latency", "chosen"):  # fmt: skip
        assert word in out, word


def test_a_fleet_has_lines_for_every_device(say: Say) -> None:
    code, out, _ = say("plan", "-t", "pixel8,galaxy_a14", "-p", "tiny")
    assert code == 0
    assert "Google Pixel 8 (Google Tensor G3) and Samsung Galaxy A14" in out
    assert re.search(r"galaxy_a14\.latency_p95_ms +[\d.]+ +[\d.]+ to [\d.]+ \(80%\) +\d+", out)
    for line in ("first_load_ms", "sustained_latency_p95_ms", "battery_percent_per_hour"):
        for name in (line, f"galaxy_a14.{line}"):
            assert re.search(rf"{name} +[\d.e-]+ +[\d.e-]+ to [\d.e-]+ \(80%\) +– +(fitted|spec only) +\w", out), name
    found = document(say, "-t", "pixel8,galaxy_a14", "-p", "tiny")["plan"]
    assert [one["name"] for one in found["fleet"]] == ["galaxy_a14"]
    for lines in (found["chosen"]["predictions"], found["chosen"]["others"]["galaxy_a14"]):
        assert {line["quantity"] for line in lines if line["level"] and 0 < line["low"] < line["high"]} == {
            "latency_p95_ms", "peak_memory_mb", "energy_mj", "first_load_ms", "sustained_latency_p95_ms",
            "battery_percent_per_hour",
        }  # fmt: skip


def test_each_format_names_the_devices_that_run_it(say: Say) -> None:
    stages = document(say, "-t", "pixel8,iphone15,galaxy_a14", "-p", "tiny")["plan"]["stages"]
    told = {stage["name"]: stage["why"].split(";")[0] for stage in stages if stage["name"].startswith("export:")}
    assert told["export:coreml"] == "Apple iPhone 15 runs it"
    assert told["export:tflite"].startswith("Google Pixel 8 and Samsung Galaxy A14")


def test_confidence_can_be_asked_for(say: Say) -> None:
    def sure(*args: str) -> tuple[int, float]:
        plan = document(say, "-t", "pixel8", "--search", "--budget", "latency_p95_ms=0.5,size_mb=8", *args)["plan"]
        return plan["search"]["sure"], plan["profile"]["confidence"]

    (low, half), (usual, default), (high, most) = sure("--confidence", "0.5"), sure(), sure("--confidence", "0.99")
    assert (half, default, most) == (0.5, 0.9, 0.99)
    assert low > usual > high


def test_a_limit_of_text_is_not_used_and_that_is_said(say: Say) -> None:
    code, out, _ = say("plan", "-t", "pixel8", "-p", "tiny", "--budget", "decode_tokens_per_s=10,first_token_ms=5")
    assert code == 0
    for line in ("decode_tokens_per_s", "first_token_ms"):
        assert f"{line}: this student makes no text; the limit was not used" in " ".join(out.split())


def test_a_plan_loads_neither_pages_nor_runners(cli: Any, tmp_path: Path) -> None:
    done = cli("plan", "-t", "pixel8", "-p", "tiny", "--store", tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    assert "edgedistill.plan.make" in done.stderr
    for name in ("edgedistill.runners", "edgedistill.report", "edgedistill.parsers", "jinja2", "numpy", "torch"):
        assert not re.search(rf"\| +{re.escape(name)}$", done.stderr, re.MULTILINE), name


def test_the_front_is_drawn_as_a_whole_svg(say: Say, tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.svg"
    code, _, err = say("plan", "-t", "pixel8", "--plot", path)
    assert code == 0, err
    text = path.read_text(encoding="utf-8")
    assert "var(--" not in text
    root = ElementTree.fromstring(text)
    words = " ".join(text.strip() for text in root.itertext())
    assert "chosen" in words
    assert "file size, MB" in words
    assert float(root.attrib["width"]) > 300


BAD = [
    (("--target", "pixel8,pixel8"), 2, "pixel8 is given twice"),
    (("--target", "pixel8,"), 2, "unknown target ''"),
    (("--target", "pixel8", "--optimize-for", "speed"), 2, "optimize_for = 'speed'"),
    (("--target", "pixel8", "--assistants", "5"), 2, "auto, or a number from 0 to 3"),
    (("--target", "pixel8", "--confidence", "90"), 2, "confidence = 90"),
    (("--target", "pixel8", "--gpu", "t5"), 2, "did you mean 't4'"),
    (("--target", "pixel8", "--plot", "plan.png"), 2, "name that ends in .svg"),
    (("--target", "pixel8", "--profile", "tiny", "--plot", "plan.svg"), 2, "only one student to draw"),
    (("--target", "pixel8,galaxy_a14", "--profile", "tiny", "--budget", "peak_memory_mb=5000"), 2, "above ram_mb"),
    (("--target", "pixel8", "--search", "--budget", "latency_p95_ms=0.000001"), 6, "best achievable"),
]


@pytest.mark.parametrize(("args", "code", "told"), BAD, ids=[" ".join(args) for args, _, _ in BAD])
def test_what_is_wrong_is_told(say: Say, args: tuple[str, ...], code: int, told: str) -> None:
    found, out, err = say("plan", *args)
    assert found == code, err
    assert told in err
    assert out == ""


def test_a_device_with_missing_facts_says_what_can_still_be_said(say: Say, tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(
        'name = "board"\ntitle = "A board"\nsoc = "unknown"\nos = "linux"\nram_mb = 2000\nformats = ["tflite"]\n'
        'runner = "ssh"\nsource = "mine"\n[budget]\nlatency_p95_ms = 5\n[[compute_units]]\nkind = "cpu"\nname = "cpu"\n'
    )
    code, out, err = say("plan", "-t", tmp_path / "board.toml", "-p", "tiny")
    assert code == 0, err
    told = " ".join(out.split())
    assert "latency_p95_ms: not predicted for board, the target lacks the facts for it: one_core_fp32_gflops" in told
    assert "the limit of 5 ms was not used; size_mb, peak_memory_mb can still be said" in told
    assert "energy_mj: not predicted for board" in told


def test_a_corrupt_record_of_a_build_is_one_clear_error(say: Say, tmp_path: Path) -> None:
    path = tmp_path / "store" / "builds" / "0.json"
    path.parent.mkdir(parents=True)
    for text in ("[1]", "[" * 200_000):
        path.write_text(text)
        code, _, err = say("plan", "-t", "host", "-p", "tiny")
        assert code == 2
        assert f"{path}: not the record of a build" in err
