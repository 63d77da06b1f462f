"""Splits as a folder of JSON lines: the same splits always give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

from edgedistill.data.rows import Row
from edgedistill.data.split import Splits, check_no_leak
from edgedistill.errors import InfrastructureError, StageError

_PARTS = ("train", "validation", "calibration", "held_out", "transfer")
_KEYS = ("id", "text", "label", "parent_id")


def write_splits(folder: Path, splits: Splits) -> None:
    """Write one JSONL file per part, `labels.json` and `notes.json`; the folder is made if it is missing.

    Raises:
        InfrastructureError: if the disk refuses.
    """
    files = {f"{part}.jsonl": "".join(map(_line, getattr(splits, part))) for part in _PARTS}
    files["labels.json"] = json.dumps(list(splits.labels), ensure_ascii=False, indent=1) + "\n"
    files["notes.json"] = json.dumps(dict(splits.notes), indent=1, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content.encode("utf-8"))
    except OSError as error:
        raise InfrastructureError(f"{folder}: the splits cannot be written ({error.strerror}).") from None


def read_splits(folder: Path) -> Splits:
    """The splits that `write_splits` wrote, checked for leaks again.

    Raises:
        StageError: if a file is missing, damaged or was edited so that a held-out text would be trained on.
    """
    parts = {part: _rows(folder / f"{part}.jsonl") for part in _PARTS}
    for part, rows in parts.items():
        if not rows and part != "transfer":
            raise _damaged(folder / f"{part}.jsonl", "no rows")
    labels, notes = _json(folder / "labels.json"), _json(folder / "notes.json")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise _damaged(folder / "labels.json", "not a list of strings")
    if not isinstance(notes, dict) or not all(type(count) is int for count in notes.values()):
        raise _damaged(folder / "notes.json", "not an object of counts")
    known = {*labels, None}
    if any(row.label not in known for rows in parts.values() for row in rows):
        raise _damaged(folder / "labels.json", "a row has a label that is not listed")
    splits = Splits(**parts, labels=tuple(labels), notes=notes)
    check_no_leak(splits)
    return splits


def _line(row: Row) -> str:
    return json.dumps({key: getattr(row, key) for key in _KEYS}, ensure_ascii=False) + "\n"


def _rows(path: Path) -> tuple[Row, ...]:
    # not splitlines: it would also cut at U+2028 and the like, which JSON leaves inside strings
    lines = _read(path).split("\n")
    if lines.pop() != "":
        raise _damaged(path, f"line {len(lines) + 1} has no end")
    return tuple(_row(path, number, line) for number, line in enumerate(lines, 1))


def _row(path: Path, number: int, line: str) -> Row:
    try:
        values = json.loads(line)
    except ValueError:
        raise _damaged(path, f"line {number} is not JSON") from None
    if not isinstance(values, dict) or tuple(values) != _KEYS:
        raise _damaged(path, f"line {number} is not a row")
    needed, optional = (values["id"], values["text"]), (values["label"], values["parent_id"])
    if not all(isinstance(value, str) for value in (*needed, *(v for v in optional if v is not None))):
        raise _damaged(path, f"line {number} is not a row")
    return Row(**values)


def _json(path: Path) -> object:
    try:
        return json.loads(_read(path))
    except ValueError:
        raise _damaged(path, "not JSON") from None


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged(path, "not UTF-8") from None
    except OSError as error:
        raise _damaged(path, error.strerror or "cannot be read") from None


def _damaged(path: Path, reason: str) -> StageError:
    return StageError(f"{path}: damaged ({reason}). Delete the folder {path.parent} and build again.")
