"""Rows from JSONL, CSV or Parquet. The files are untrusted: each fault is a DataError with its file and line.

Columns other than `text` and `label` are ignored, and so are blank lines. A label may be text or an integer.
"""

from __future__ import annotations

import csv
import difflib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from edgedistill.data.lines import text_lines
from edgedistill.data.parquet import parquet_columns
from edgedistill.data.rows import Row, normalise, number_rows, shorten
from edgedistill.data.sources import Part, Source, locate
from edgedistill.errors import DataError

_NEEDS = "Each row needs a 'text' and a 'label'"


class PlacedRow(NamedTuple):
    """A row and where it was read: 'FILE:LINE', for errors."""

    place: str
    row: Row


class _Record(NamedTuple):
    place: str
    values: Mapping[str, object]
    keys: Iterable[str]


def load_rows(source: str, base: Path, *, part: Part = "train", labelled: bool = True) -> list[Row]:
    """Every row of a file or a shipped data set ('builtin:NAME', of which `part` picks the half), in its order.

    A relative path starts at `base`. With `labelled=False` rows may come without labels.

    Raises:
        DataError: with file and line, for a file that cannot be read or a row that cannot be used.
        MissingDependency: for a Parquet file without pyarrow.
    """
    return [placed.row for placed in load_placed(source, base, part=part, labelled=labelled)]


def load_placed(source: str, base: Path, *, part: Part = "train", labelled: bool = True) -> list[PlacedRow]:
    """As `load_rows`, each row with its place.

    Raises:
        DataError: as `load_rows`.
        MissingDependency: as `load_rows`.
    """
    found = locate(source, base, part)
    places: list[str] = []
    pairs: list[tuple[str, str | None]] = []
    unlabelled: list[_Record] = []
    for record in _records(found):
        places.append(record.place)
        label = _label(record) if "label" in record.values else None
        pairs.append((_text(record), label))
        if label is None and labelled and not unlabelled:
            unlabelled.append(record)
    if not pairs:
        raise DataError(f"{found.path}: has no rows. {_NEEDS}.")
    if unlabelled:
        raise _without_label(found.path, unlabelled[0], [label for _, label in pairs])
    return [PlacedRow(place, row) for place, row in zip(places, number_rows(pairs), strict=True)]


def _records(source: Source) -> Iterator[_Record]:
    packed = source.kind.endswith(".gz")
    if source.kind == ".parquet":
        return _parquet_records(source.path)
    if source.kind.startswith(".csv"):
        return _csv_records(source.path, packed)
    return _jsonl_records(source.path, packed)


def _jsonl_records(path: Path, packed: bool) -> Iterator[_Record]:
    for number, line in text_lines(path, packed):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            values = json.loads(line, object_pairs_hook=_object)
        except RecursionError:
            raise DataError(f"{place}: JSON nested too deeply. {_NEEDS}, nothing nested.") from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place}: not valid JSON: {error.msg} at column {error.colno}: {shorten(line.strip())}. "
                'Write one object a line, such as {"text": "hello", "label": "greeting"}.'
            ) from None
        except ValueError as error:  # an integer of thousands of digits, a key that occurs twice
            raise DataError(f"{place}: {str(error)[:120]}. {_NEEDS}.") from None
        if not isinstance(values, dict):
            raise DataError(f"{place}: {shorten(values)} is not an object. {_NEEDS} in one JSON object a line.")
        yield _Record(place, values, values)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {shorten(twice)} occurs twice in one object")
    return values


def _csv_records(path: Path, packed: bool) -> Iterator[_Record]:
    reader = csv.reader((line for _, line in text_lines(path, packed)), strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            place, start = f"{path}:{start}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(place, header)
            elif len(cells) != len(header):
                raise DataError(
                    f"{place}: {len(cells)} fields, the header has {len(header)}: {shorten(cells)}. "
                    "Put a text that holds a comma, quote or line end in double quotes."
                )
            else:
                yield _Record(place, dict(zip(header, cells, strict=True)), header)
    except csv.Error as error:
        raise DataError(
            f"{path}:{start}: not valid CSV ({error}). Fields are separated by commas; a quote inside a quoted field "
            "is written twice; no field is longer than "
            f"{csv.field_size_limit():,} characters."
        ) from None


def _check_header(place: str, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{place}: column {shorten(twice[0])} occurs twice. Keep one of them.")
    if "text" not in header:
        raise DataError(
            f"{place}: the header has no column 'text'{_seen('text', header)} The first line of a CSV file names the "
            "columns, separated by commas: text,label."
        )


def _parquet_records(path: Path) -> Iterator[_Record]:
    names, rows = parquet_columns(path)
    if "text" not in names:
        raise DataError(f"{path}: no column 'text'{_seen('text', names)} {_NEEDS} column.")
    for number, values in rows:
        yield _Record(f"{path}: row {number}", values, names)


def _text(record: _Record) -> str:
    if "text" not in record.values:
        raise DataError(f"{record.place}: key 'text' is missing{_seen('text', record.keys)} {_NEEDS}.")
    value = record.values["text"]
    if not isinstance(value, str):
        raise DataError(f"{record.place}: 'text' is {shorten(value)} ({_kind(value)}). Allowed: a string.")
    return _clean(value, record.place, "text")


def _label(record: _Record) -> str:
    value = record.values["label"]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{record.place}: 'label' is {shorten(value)} ({_kind(value)}). Allowed: a string or an integer."
        )
    return _clean(value, record.place, "label")


def _clean(value: str, place: str, name: str) -> str:
    if "\0" in value:
        raise DataError(f"{place}: {name!r} holds a NUL character: {shorten(value)}. Remove it.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{place}: {name!r} holds half a surrogate pair: {shorten(value)}. Write the whole character."
        ) from None
    text = normalise(value)
    # no-break spaces and zero-width marks are no whitespace to str.split, and nothing to read either
    if all(unicodedata.category(character)[0] in "ZC" for character in text):
        raise DataError(f"{place}: {name!r} is empty: {shorten(value)}. Remove the row, or fill it in.")
    return text


def _kind(value: object) -> str:
    names = {"dict": "an object", "list": "a list", "bool": "a boolean", "NoneType": "null", "int": "a number"}
    name = type(value).__name__
    return names.get(name, "a number" if name == "float" else name)


def _seen(key: str, keys: Iterable[str]) -> str:
    names = [str(name) for name in keys]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"; did you mean {shorten(close[0])}?" if close else "."
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"; seen: {', '.join(map(shorten, names[:10])) or 'none'}{more}{hint}"


def _without_label(path: Path, first: _Record, labels: list[str | None]) -> DataError:
    missing = labels.count(None)
    if missing == len(labels):
        lead = f"{path}: none of its {missing:,} rows has a 'label', so nothing can be learnt from it"
    else:
        lead = f"{first.place}: key 'label' is missing (in {missing:,} of {len(labels):,} rows)"
    return DataError(f"{lead}{_seen('label', first.keys)} {_NEEDS}.")
