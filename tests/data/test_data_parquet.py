"""Parquet files, and damage at random places of files of each kind."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgedistill.data import load_rows
from edgedistill.errors import DataError

GOOD = b'{"text": "hello there", "label": "greet"}\n{"text": "good bye", "label": "leave"}\n'
PAIRS = [("hello there", "greet"), ("good bye", "leave")]


def pairs(source: str, base: Path) -> list[tuple[str, str | None]]:
    return [(row.text, row.label) for row in load_rows(source, base)]


def parquet(path: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), path)


def test_reads_parquet(tmp_path: Path) -> None:
    texts, labels = [text for text, _ in PAIRS], [label for _, label in PAIRS]
    parquet(tmp_path / "a.parquet", text=texts, label=labels, other=[[1], [2]])
    parquet(tmp_path / "dictionary.parquet", text=texts, label=pa.array(labels).dictionary_encode())
    parquet(tmp_path / "integer.parquet", text=pa.array(texts, pa.large_string()), label=[7, -1])
    assert pairs("a.parquet", tmp_path) == PAIRS
    assert pairs("dictionary.parquet", tmp_path) == PAIRS
    assert [label for _, label in pairs("integer.parquet", tmp_path)] == ["7", "-1"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": ["a"], "label": ["b"]}, r"no column 'text'; seen: 'txt', 'label'; did you mean 'txt'\?"),
        ({"text": ["a"], "labels": ["b"]}, r"none of its 1 rows has a 'label'.*did you mean 'labels'\?"),
        ({"text": [b"a"], "label": ["b"]}, r"column 'text' has type binary\. Allowed: string"),
        ({"text": [["a"]], "label": ["b"]}, r"column 'text' has type list"),
        ({"text": [1], "label": ["b"]}, r"column 'text' has type int64"),
        ({"text": ["a"], "label": [True]}, r"column 'label' has type bool\. Allowed: string or integer"),
        ({"text": ["a"], "label": [1.5]}, r"column 'label' has type double"),
        ({"text": ["a", None], "label": ["b", "c"]}, r"a\.parquet: row 2: 'text' is None \(null\)"),
        ({"text": ["a", "b"], "label": [1, None]}, r"row 2: 'label' is None"),
        ({"text": ["a", " "], "label": ["b", "c"]}, r"row 2: 'text' is empty"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}, r"has no rows"),
        ({"text": ["a", "b" * 1_000_001], "label": ["b", "c"]}, r"row 2: more than 1,000,000 characters"),
        ({"text": ["a" * 50_000] * 1000, "label": ["b"] * 1000}, r"row 320: more than 16,000,000 characters"),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(DataError, match=message):
        load_rows("a.parquet", tmp_path)


def test_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    text = pa.array([b"a", b"caf\xe9"], pa.binary()).view(pa.string())
    parquet(tmp_path / "a.parquet", text=text, label=["b", "c"])
    with pytest.raises(DataError, match=r"row 2: not UTF-8"):
        load_rows("a.parquet", tmp_path)


def test_parquet_column_twice(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["text", "text", "label"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'text' occurs 2 times"):
        load_rows("a.parquet", tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", GOOD, b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_not_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"not a readable Parquet file .*Write the file again"):
        load_rows("a.parquet", tmp_path)


def test_parquet_with_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet(path, text=[f"text {n}" for n in range(1000)], label=["b"] * 1000)
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet: row 1: not a readable Parquet file"):
        load_rows("a.parquet", tmp_path)


# anything at all


@pytest.mark.parametrize("kind", ["jsonl", "csv", "jsonl.gz", "parquet"])
def test_mutated_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    path = tmp_path / f"a.{kind}"
    rows = [(f"text number {n} \u00e9", f"l{n % 7}") for n in range(60)]
    if kind == "parquet":
        parquet(path, text=[text for text, _ in rows], label=[label for _, label in rows])
    else:
        lines = [
            f'"{text}",{label}\n' if kind == "csv" else json.dumps({"text": text, "label": label}) + "\n"
            for text, label in rows
        ]
        content = "".join(["text,label\n"] * (kind == "csv") + lines).encode()
        path.write_bytes(gzip.compress(content, mtime=0) if kind.endswith("gz") else content)
    original = path.read_bytes()
    messages = []
    for _ in range(200):
        data = bytearray(original)
        for _ in range(rng.choice([1, 2, 5])):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        path.write_bytes(data)
        try:
            load_rows(path.name, tmp_path)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert max(map(len, messages)) < 700 + len(str(tmp_path))
