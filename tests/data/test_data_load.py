"""Reading rows: what is accepted, and sources that are no file."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from edgedistill.data import load_rows
from edgedistill.errors import DataError

GOOD = b'{"text": "hello there", "label": "greet"}\n{"text": "good bye", "label": "leave"}\n'
PAIRS = [("hello there", "greet"), ("good bye", "leave")]
GOOD_CSV = b"text,label\nhello there,greet\ngood bye,leave\n"


def pairs(source: str, base: Path) -> list[tuple[str, str | None]]:
    return [(row.text, row.label) for row in load_rows(source, base)]


# what is accepted


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", GOOD),
        ("A.JSONL", GOOD),
        ("a.jsonl.gz", gzip.compress(GOOD, mtime=0)),
        ("a.csv", GOOD_CSV),
        ("a.csv.gz", gzip.compress(GOOD_CSV, mtime=0)),
        ("bom.jsonl", b"\xef\xbb\xbf" + GOOD),
        ("bom.csv", b"\xef\xbb\xbf" + GOOD_CSV),
        ("crlf.jsonl", GOOD.replace(b"\n", b"\r\n")),
        ("crlf.csv", GOOD_CSV.replace(b"\n", b"\r\n")),
        ("no_last_line_end.jsonl", GOOD.rstrip()),
        ("blank_lines.jsonl", b"\n" + GOOD.replace(b"\n", b"\n \t\n")),
        ("blank_lines.csv", b"\n" + GOOD_CSV.replace(b"\n", b"\n\n")),
        ("quoted.csv", b'"text","label"\n"hello\nthere",greet\n"good bye","leave"\n'),
        ("other_columns.csv", b"id,label,text\n1,greet,hello there\n2,leave,good bye\n"),
        ("spaces.jsonl", GOOD.replace(b"hello there", b" hello \\t\\u00a0 there\\n")),
    ],
)
def test_reads_text_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert pairs(name, tmp_path) == PAIRS


def test_an_absolute_path_ignores_the_base(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    assert pairs(str(tmp_path / "a.jsonl"), tmp_path / "elsewhere") == PAIRS


def test_integer_labels_and_line_separators_inside_json(tmp_path: Path) -> None:
    content = '{"text": "one\u2028line", "label": 3}\n{"text": "e\u0301", "label": " a  b "}\n'
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    assert pairs("a.jsonl", tmp_path) == [("one line", "3"), ("\u00e9", "a b")]


def test_ids_are_stable_and_differ_for_equal_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.csv").write_bytes(GOOD_CSV + b"hello there,greet\n")
    one, two = load_rows("a.jsonl", tmp_path), load_rows("b.csv", tmp_path)
    assert [row.id for row in one] == [row.id for row in two[:2]]
    assert one[0].id == "65e566168702953d"  # part of every cache: a change must be meant
    assert len({row.id for row in two}) == 3


def test_labels_are_optional_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert [row.label for row in load_rows("a.jsonl", tmp_path, labelled=False)] == [None, None]
    with pytest.raises(DataError, match=r"a\.jsonl: none of its 2 rows has a 'label'.*nothing can be learnt"):
        load_rows("a.jsonl", tmp_path)


# files that cannot be opened


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file; did you mean 'train\.jsonl'\?"):
        load_rows("trian.jsonl", tmp_path)
    with pytest.raises(DataError, match="nor is there such a folder"):
        load_rows("nowhere/train.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "is a folder. Give one file"),
        (".", "is a folder"),
        ("a\0b.jsonl", "NUL characters"),
        ("x" * 300 + ".jsonl", "cannot be read .File name too long"),
        ("builtin:banking7", r"no such data set; did you mean 'banking77'\? Allowed: banking5, banking77"),
        ("builtin:../data", "no such data set"),
        ("builtin:", "no such data set"),
    ],
)
def test_sources_that_are_no_file(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_rows(source, tmp_path)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        load_rows("a.jsonl", tmp_path)


def test_unreadable_file(tmp_path: Path) -> None:
    # a regular file whose reading fails for root too
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"a\.jsonl:1: cannot be read .Input/output error"):
        load_rows("a.jsonl", tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a", "a.json", "a.parquet.gz", "a.xlsx"])
def test_unknown_extension(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(DataError, match=r"unknown kind of file.*Allowed extensions: \.jsonl, \.jsonl\.gz, \.csv"):
        load_rows(name, tmp_path)
