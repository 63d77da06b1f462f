"""The shipped data set: its figures, its papers, and that its maker makes it again."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import edgedistill.data
from edgedistill.data import builtin_names, load_rows, make_splits, text_key
from edgedistill.specs.profile import DataSpec

FOLDER = Path(edgedistill.data.__file__).parent / "builtin" / "banking77"
FILES = ("train.csv.gz", "held_out.csv.gz")


def test_figures(tmp_path: Path) -> None:
    assert builtin_names() == ["banking5", "banking77"]
    splits = make_splits(DataSpec(train="builtin:banking77"), 0, tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.held_out)) == (9491, 500, 1999)
    assert len(splits.calibration) == 256
    assert len(splits.labels) == 77
    assert splits.notes == {
        "train_rows_read": 9995,
        "train_duplicates_dropped": 4,
        "train_label_conflicts_dropped": 0,
        "held_out_rows_read": 2000,
        "held_out_duplicates_dropped": 1,
        "held_out_label_conflicts_dropped": 0,
        "train_dropped_as_held_out": 0,
        "classes_without_held_out_rows": 0,
        "classes_without_validation_rows": 0,
        "calibration_rows_short": 0,
    }


def test_no_train_text_is_held_out(tmp_path: Path) -> None:
    train, held_out = (load_rows("builtin:banking77", tmp_path, part=part) for part in ("train", "held_out"))
    assert not {text_key(row.text) for row in train} & {text_key(row.text) for row in held_out}
    assert {row.label for row in train} == {row.label for row in held_out}


def test_the_shipped_files_can_be_the_held_out_rows_of_others(tmp_path: Path) -> None:
    rows = load_rows("builtin:banking77", tmp_path)
    lines = "".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows[::2])
    (tmp_path / "mine.jsonl").write_text(lines)
    splits = make_splits(DataSpec(train="mine.jsonl", held_out="builtin:banking77"), 0, tmp_path)
    assert len(splits.held_out) == 1999


def test_papers_and_sizes() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for phrase in (
        "CC BY 4.0",
        "Casanueva",
        "PolyAI",
        "subset of BANKING77",
        "Whitespace is normalised",
        "held-out part",
    ):
        assert phrase in readme
    contents = [(FOLDER / name).read_bytes() for name in FILES]
    assert sum(map(len, contents)) < 300_000
    for content in contents:
        assert hashlib.sha256(content).hexdigest() in readme
        assert content[4:8] == bytes(4)  # gzip's time of making


def test_the_maker_is_deterministic_and_removes_held_out_texts(tmp_path: Path) -> None:
    pool = {
        "train_texts": ["\nHow  do I?", "WHAT is it?", 'Why, "so"?'],
        "train_labels": ["0", "1", "1"],
        "test_texts": ["what\u00a0is it? "],
        "test_labels": ["1"],
        "label_names": {"0": "how", "1": "what"},
    }
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        command = [sys.executable, str(FOLDER / "make.py"), str(tmp_path / "pool.json"), str(tmp_path / name)]
        subprocess.run(command, check=True, env={"PYTHONPATH": str(FOLDER.parents[3])})
        made.append([(tmp_path / name / file).read_bytes() for file in FILES])
    assert made[0] == made[1]
    assert gzip.decompress(made[0][0]).decode() == 'text,label\nHow do I?,how\n"Why, ""so""?",what\n'
    assert gzip.decompress(made[0][1]).decode() == "text,label\nwhat is it?,what\n"


def test_no_heavy_imports() -> None:
    program = (
        "import sys; from pathlib import Path; from edgedistill.data import load_rows; "
        "load_rows('builtin:banking77', Path('.')); "
        "sys.exit(', '.join({'torch', 'numpy', 'pyarrow', 'transformers'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(FOLDER.parents[3])})
