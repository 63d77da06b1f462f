"""Splits on disk: the same bytes in every process, read back equal, damage noticed; and the fingerprint."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgedistill.data import Row, Splits, fingerprint, make_splits, read_splits, write_splits
from edgedistill.errors import DataError, InfrastructureError, StageError
from edgedistill.specs.profile import DataSpec

FILES = ["calibration", "held_out", "train", "transfer", "validation"]
ALL_FILES = sorted([*(f"{name}.jsonl" for name in FILES), "labels.json", "notes.json"])
LINES = [f'{{"text": "caf\u00e9 {label}\u2028 number {n}", "label": "{label}"}}\n' for label in "ab" for n in range(20)]


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    (tmp_path / "train.jsonl").write_text("".join(LINES), encoding="utf-8")
    return make_splits(DataSpec(train="train.jsonl", transfer_factor=1), 0, tmp_path)


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_round_trip(tmp_path: Path, splits: Splits) -> None:
    odd = Row("f" * 16, 'line\u2028separator \x85 "quotes" \\ caf\u00e9 \U0001f600', "a")
    splits = replace(splits, train=(*splits.train, odd))
    write_splits(tmp_path / "new" / "folder", splits)
    assert read_splits(tmp_path / "new" / "folder") == splits
    assert sorted(digest(tmp_path / "new" / "folder")) == ALL_FILES


def test_empty_transfer_set_round_trips(tmp_path: Path, splits: Splits) -> None:
    write_splits(tmp_path / "out", replace(splits, transfer=()))
    assert read_splits(tmp_path / "out").transfer == ()


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edgedistill.data import *; "
        "from edgedistill.specs.profile import DataSpec; "
        "spec = DataSpec(train='builtin:banking77', transfer_factor=1); "
        "write_splits(Path(sys.argv[1]), make_splits(spec, 7, Path('.')))"
    )
    found = []
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", program, str(folder)], check=True, env=environment, cwd=tmp_path)
        found.append(digest(folder))
    assert found[0] == found[1]
    assert sorted(found[0]) == ALL_FILES


def _append(line: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(path.read_text(encoding="utf-8") + line, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train.jsonl", Path.unlink, "No such file"),
        ("train.jsonl", lambda path: path.write_bytes(path.read_bytes()[:-9]), "has no end"),
        ("train.jsonl", lambda path: path.write_bytes(b""), "no rows"),
        ("train.jsonl", lambda path: path.write_bytes(b"\xff\n"), "not UTF-8"),
        ("train.jsonl", _append("{]\n"), "line 31 is not JSON"),
        ("train.jsonl", _append("[]\n"), "line 31 is not a row"),
        ("train.jsonl", _append('{"id": "1", "text": "a", "label": "a"}\n'), "line 31 is not a row"),
        ("train.jsonl", _append('{"id": "1", "text": 5, "label": "a", "parent_id": null}\n'), "is not a row"),
        ("train.jsonl", _append('{"id": "1", "text": "a", "label": 0, "parent_id": null}\n'), "is not a row"),
        ("train.jsonl", _append('{"id": null, "text": "a", "label": "a", "parent_id": null}\n'), "is not a row"),
        ("labels.json", lambda path: path.write_text('["a"]'), "not listed"),
        ("labels.json", lambda path: path.write_text("{}"), "not a list of strings"),
        ("labels.json", lambda path: path.write_text("[1]"), "not a list of strings"),
        ("notes.json", lambda path: path.write_text('{"a": true}'), "not an object of counts"),
        ("notes.json", lambda path: path.write_text("{"), "not JSON"),
    ],
)
def test_damage_is_noticed(
    tmp_path: Path, splits: Splits, name: str, damage: Callable[[Path], None], message: str
) -> None:
    write_splits(tmp_path / "out", splits)
    damage(tmp_path / "out" / name)
    with pytest.raises(StageError, match=rf"{name}: damaged \(.*{message}.*\)\. Delete the folder .* and build again"):
        read_splits(tmp_path / "out")


def test_a_leak_written_by_hand_is_noticed(tmp_path: Path, splits: Splits) -> None:
    write_splits(tmp_path / "out", splits)
    held_out = (tmp_path / "out" / "held_out.jsonl").read_text(encoding="utf-8")
    _append(held_out)(tmp_path / "out" / "train.jsonl")
    with pytest.raises(StageError, match=f"the splits leak: {len(splits.held_out)} texts are in train and in held_out"):
        read_splits(tmp_path / "out")


def test_a_disk_that_refuses(tmp_path: Path, splits: Splits) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InfrastructureError, match="cannot be written"):
        write_splits(tmp_path / "file" / "out", splits)


# the fingerprint


def test_the_fingerprint_is_of_bytes_and_not_of_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jsonl", "sub/b.jsonl"):
        (tmp_path / name).write_text("".join(LINES), encoding="utf-8")
    one = fingerprint(DataSpec(train="a.jsonl"), tmp_path)
    assert len(one) == 64
    assert fingerprint(DataSpec(train="b.jsonl"), tmp_path / "sub") == one
    assert fingerprint(DataSpec(train=str(tmp_path / "a.jsonl")), Path("/")) == one
    assert fingerprint(DataSpec(train="a.jsonl", held_out="a.jsonl"), tmp_path) != one
    (tmp_path / "a.jsonl").write_text("".join(LINES) + " \n", encoding="utf-8")
    assert fingerprint(DataSpec(train="a.jsonl"), tmp_path) != one


def test_the_fingerprint_tells_train_from_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES[0], encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(LINES[1], encoding="utf-8")
    one, other = (DataSpec(train=f"{a}.jsonl", held_out=f"{b}.jsonl") for a, b in ("ab", "ba"))
    assert fingerprint(one, tmp_path) != fingerprint(other, tmp_path)


def test_the_same_bytes_mean_other_rows_to_another_reader(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl", "A.CSV"):
        (tmp_path / name).write_text(LINES[0], encoding="utf-8")
    csv, jsonl, shouted = (fingerprint(DataSpec(train=name), tmp_path) for name in ("a.csv", "a.jsonl", "A.CSV"))
    assert csv == shouted != jsonl


def test_the_fingerprint_of_a_shipped_data_set_needs_no_base(tmp_path: Path) -> None:
    spec = DataSpec(train="builtin:banking77")
    assert fingerprint(spec, tmp_path) == fingerprint(spec, tmp_path / "nowhere")
    assert fingerprint(spec, tmp_path) == fingerprint(
        DataSpec(train="builtin:banking77", held_out="builtin:banking77"), tmp_path
    )


def test_the_fingerprint_of_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="no such file"):
        fingerprint(DataSpec(train="a.jsonl.gz", held_out="b.jsonl"), tmp_path)
