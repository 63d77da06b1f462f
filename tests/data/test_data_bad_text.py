"""Text files that are refused: each with its place, what was seen and what to do."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from edgedistill.data import load_rows
from edgedistill.data.lines import MAX_LINE_BYTES, unpacked_limit
from edgedistill.errors import DataError

GOOD = b'{"text": "hello there", "label": "greet"}\n{"text": "good bye", "label": "leave"}\n'

# bad content: the second row is bad, so its place is known

BAD_JSONL = {
    "broken": ('{"text": "a", "label"', r":2: not valid JSON: .* at column \d+.*one object a line"),
    "array": ("[1, 2]", r":2: \[1, 2\] is not an object"),
    "string": ('"text"', r":2: 'text' is not an object"),
    "deep": ("[" * 100_000, r":2: JSON nested too deeply"),
    "deep_value": ('{"text": ' + "[" * 500 + "]" * 500 + ', "label": "b"}', r":2: 'text' is \[.*\(a list\)"),
    "huge_integer": ('{"text": "a", "label": ' + "9" * 5000 + "}", r":2: Exceeds the limit"),
    "key_twice": ('{"text": "a", "text": "b", "label": "c"}', r":2: key 'text' occurs twice"),
    "text_typo": (
        '{"txt": "a", "label": "b"}',
        r":2: key 'text' is missing; seen: 'txt', 'label'; did you mean 'txt'\?",
    ),
    "label_typo": (
        '{"text": "a", "lable": "b"}',
        r":2: key 'label' is missing \(in 1 of 2 rows\); seen: 'text', 'lable'; did you mean 'lable'\?",
    ),
    "no_keys": ("{}", r":2: key 'text' is missing; seen: none"),
    "many_keys": (json.dumps({f"k{n}": n for n in range(99)}), r"'k9' and 89 more\. "),
    "text_number": ('{"text": 5, "label": "b"}', r":2: 'text' is 5 \(a number\)\. Allowed: a string"),
    "text_null": ('{"text": null, "label": "b"}', r":2: 'text' is None \(null\)"),
    "label_bool": (
        '{"text": "a", "label": true}',
        r":2: 'label' is True \(a boolean\)\. Allowed: a string or an integer",
    ),
    "label_null": ('{"text": "a", "label": null}', r":2: 'label' is None \(null\)"),
    "label_list": ('{"text": "a", "label": ["b"]}', r":2: 'label' is \['b'\] \(a list\)"),
    "label_object": ('{"text": "a", "label": {}}', r":2: 'label' is \{\} \(an object\)"),
    "label_float": ('{"text": "a", "label": 1.0}', r":2: 'label' is 1\.0 \(a number\)"),
    "label_nan": ('{"text": "a", "label": NaN}', r":2: 'label' is nan"),
    "label_empty": ('{"text": "a", "label": " "}', r":2: 'label' is empty"),
    "text_empty": ('{"text": "", "label": "b"}', r":2: 'text' is empty: ''\. Remove the row"),
    "text_blank": ('{"text": " \\t\\u00a0\\u200b\\ufeff", "label": "b"}', r":2: 'text' is empty"),
    "text_nul": ('{"text": "a\\u0000b", "label": "b"}', r":2: 'text' holds a NUL character: 'a\\x00b'"),
    "raw_nul": ('{"text": "a\0b", "label": "b"}', r":2: NUL character at position 12"),
    "surrogate": ('{"text": "a\\ud800b", "label": "b"}', r":2: 'text' holds half a surrogate pair"),
}


@pytest.mark.parametrize("case", BAD_JSONL)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_jsonl(tmp_path: Path, case: str, packed: bool) -> None:
    line, message = BAD_JSONL[case]
    content = GOOD.splitlines(keepends=True)[0] + line.encode() + b"\n"
    name = "bad.jsonl.gz" if packed else "bad.jsonl"
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=message) as caught:
        load_rows(name, tmp_path)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


BAD_CSV = {
    "no_header": (
        b"hello,greet\nbye,leave\n",
        r":1: the header has no column 'text'; seen: 'hello', 'greet'.*first line",
    ),
    "semicolons": (b"text;label\na;b\n", r":1: .*seen: 'text;label'; did you mean 'text;label'\?.*separated by commas"),
    "column_twice": (b"text,label,text\na,b,c\n", r":1: column 'text' occurs twice"),
    "no_label": (b"text,lable\na,b\n", r"none of its 1 rows has a 'label'.*did you mean 'lable'\?"),
    "too_many": (
        b'text,label\n"a\nb",c\nhello, you,greet\n',
        r":4: 3 fields, the header has 2: \['hello', ' you', 'greet'\]",
    ),
    "too_few": (b"text,label\na\n", r":2: 1 fields, the header has 2.*in double quotes"),
    "open_quote": (b'text,label\na,b\n"never closed,c\n', r":3: not valid CSV \(unexpected end of data\)"),
    "bad_quote": (b'text,label\n"a"b,c\n', r":2: not valid CSV .*written twice"),
    "field_limit": (
        b'text,label\n"' + b"a\n" * 100_000 + b'",c\n',
        r":2: not valid CSV \(field larger than field limit",
    ),
    "only_cr": (b"text,label\ra,b\r", r":1: not valid CSV"),
    "header_only": (b"text,label\n", r"has no rows"),
    "empty_text": (b"text,label\n  ,b\n", r":2: 'text' is empty"),
    "empty_label": (b"text,label\na,\n", r":2: 'label' is empty"),
    "nul": (b"text,label\na\0,b\n", r":2: NUL character"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(tmp_path: Path, case: str) -> None:
    content, message = BAD_CSV[case]
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_rows("bad.csv", tmp_path)
    assert "bad.csv" in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b"\n", b" \n\r\n", b"\xef\xbb\xbf"])
def test_empty_files(tmp_path: Path, name: str, content: bytes) -> None:
    if name == "a.csv" and content.strip(b"\n"):
        content = b"\n"  # a line of spaces is a header without names
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match="has no rows"):
        load_rows(name, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + b'{"text": "caf\xe9", "label": "b"}\n', r":3: not UTF-8: byte 14 of the line is 0xe9"),
        (GOOD.decode().encode("utf-16"), r":1: not UTF-8: byte 1 of the line is 0xff"),
        (GOOD.decode().encode("utf-16-le"), r":1: NUL character at position 2.*not UTF-16"),
        (gzip.compress(GOOD, mtime=0), r":1: not UTF-8"),
    ],
)
def test_not_utf8(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_rows("a.jsonl", tmp_path)


@pytest.mark.parametrize("size", [MAX_LINE_BYTES + 1, 10_000_000])
def test_long_lines_are_refused_without_reading_them(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD + b'{"text": "' + b"a" * size)
    tracemalloc.start()
    with pytest.raises(DataError, match=r":3: line of more than 1,000,000 bytes"):
        load_rows("a.jsonl", tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_LINE_BYTES


def test_a_line_of_the_limit_is_read(tmp_path: Path) -> None:
    frame = b'{"text": "", "label": "b"}\n'
    line = frame.replace(b'""', b'"' + b"a" * (MAX_LINE_BYTES - len(frame)) + b'"')
    (tmp_path / "a.jsonl").write_bytes(line)
    assert len(line) == MAX_LINE_BYTES
    assert len(load_rows("a.jsonl", tmp_path)) == 1


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: data[:20] + b"\xff" * 20 + data[40:], lambda data: GOOD],
    ids=["cut", "overwritten", "not_gzip"],
)
def test_damaged_gzip(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(damage(gzip.compress(GOOD)))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz:\d+: not a whole gzip file"):
        load_rows("a.jsonl.gz", tmp_path)


def test_gzip_bombs(tmp_path: Path) -> None:
    bomb = tmp_path / "a.jsonl.gz"
    bomb.write_bytes(gzip.compress(b"a" * 50_000_000))
    with pytest.raises(DataError, match=r":1: line of more than"):
        load_rows(bomb.name, tmp_path)
    row = json.dumps({"text": "a" * 10_000, "label": "b"}).encode() + b"\n"
    bomb.write_bytes(gzip.compress(row * 3000))
    limit = unpacked_limit(bomb.stat().st_size)
    assert limit < 3000 * len(row)
    with pytest.raises(DataError, match=rf"unpacks to more than {limit:,} bytes"):
        load_rows(bomb.name, tmp_path)
    bomb.write_bytes(gzip.compress(b"\n" * 1_000_000))
    with pytest.raises(DataError, match=r":250001: unpacks to more than 16,000,000 bytes"):
        load_rows(bomb.name, tmp_path)
