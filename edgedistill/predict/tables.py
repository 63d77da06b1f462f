"""The shipped tables and coefficients, each read once when it is first needed."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from edgedistill.errors import SpecError

DATA = Path(__file__).with_name("data")
MORE = "more"  # folder within it: rows that this project collected, in files of the same names and columns
COEFFICIENTS = Path(__file__).with_name("coefficients.json")
SCHEMA_VERSION = 3

Row = Mapping[str, str]


@cache
def rows(name: str) -> tuple[Row, ...]:
    """A shipped CSV file as rows of text, and after them those of the file of its name in `more`.

    Raises:
        SpecError: if a file is missing or not a table.
    """
    return tuple(row for path in _files(name) for row in _read(path))


@cache
def latency_rows(model: str) -> tuple[Row, ...]:
    """The latency rows of one model, found without building the others: the file is read at each plan."""
    start = f'"{model}",' if "," in model else f"{model},"
    return tuple(row for path in _files("latency.csv") for row in _read(path, start))


def _files(name: str) -> tuple[Path, ...]:
    more = DATA / MORE / name
    return (DATA / name, more) if more.exists() else (DATA / name,)


def _read(path: Path, start: str = "") -> tuple[Row, ...]:
    """The rows of a file whose lines begin so."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header = next(file)
            return tuple(csv.DictReader([header, *(line for line in file if line.startswith(start))]))
    except (OSError, UnicodeDecodeError, csv.Error, StopIteration) as error:
        raise SpecError(f"{path}: cannot be read ({error!r}). Reinstall the package.") from None


@cache
def coefficients(path: Path = COEFFICIENTS) -> Mapping[str, Any]:
    """What calibration found.

    Raises:
        SpecError: if the file is missing, is not JSON, or is not of this version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read ({error}). Run `python bench/calibrate.py`, or reinstall.") from None
    wanted = {"schema_version", "latency", "llm", "memory", "energy", "load", "impute"}
    if not isinstance(found, dict) or not wanted <= set(found) or found["schema_version"] != SCHEMA_VERSION:
        raise SpecError(
            f"{path}: not coefficients of version {SCHEMA_VERSION}; it should hold {', '.join(sorted(wanted))}."
            " Run `python bench/calibrate.py`, or reinstall."
        )
    checked: dict[str, Any] = found
    return checked


def number(text: str | None) -> float | None:
    """A cell as a number; None when it is empty."""
    return float(text) if text not in ("", None) else None
