"""What all parsers share: numbers as tools print them, the prefixes of logs, and one kind of error."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from edgedistill.errors import DataError

# 12, -3.5, 1.24027e+06 and, where a locale shaped it, 614,333: no tool here prints a thousands separator.
NUMBER = r"[-+]?\d+(?:[.,]\d+)?(?:[eE][-+]?\d+)?"
# `INFO: `, glog's `I0521 10:00:00.123456 123 file.cc:45] `, and two forms of logcat
_PREFIX = re.compile(
    r"^(?:\d\d-\d\d \d\d:\d\d:\d\d\.\d+\s+\d+\s+\d+\s+[VDIWEF]\s+[^:]*:\s"
    r"|(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d\.\d+\s+\d+-\d+(?:/\S+)?\s+(?:[VDIWEF]/)?[\w.-]+(?:\s+\S+\s+[VDIWEF])?:?\s+"
    r"|[VDIWEF]/[^(]{1,64}\(\s*\d+\):\s"
    r"|[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+\s+\d+ [^\]]{1,200}\] )?(?:(?:INFO|WARNING|ERROR|VERBOSE):\s?)?"
)
LONGEST = 20_000_000  # characters; a log of a run is a thousand times smaller


def number(text: str, what: str = "number") -> float:
    """A finite number as a tool prints it.

    Raises:
        DataError: it is none.
    """
    cleaned = text.strip().strip('"')
    if not re.fullmatch(NUMBER, cleaned):
        raise DataError(f"{what}: {cleaned[:60]!r} is not a number")
    value = float(cleaned.replace(",", "."))
    if not math.isfinite(value):
        raise DataError(f"{what}: {cleaned[:60]!r} is too large")
    return value


def whole(text: str, what: str = "number", low: int = 0) -> int:
    """A whole number of at least `low`.

    Raises:
        DataError: it is none.
    """
    value = number(text, what)
    if value != int(value) or value < low or abs(value) > 2**63:
        raise DataError(f"{what}: {text.strip()[:60]!r} is not a whole number of at least {low}")
    return int(value)


def lines_of(text: str) -> list[str]:
    """The lines without what a log puts in front of each.

    Raises:
        DataError: it is empty, or no text of a sensible length.
    """
    if len(text) > LONGEST:
        raise DataError(f"{len(text)} characters: longer than the log of any run")
    if not text.strip():
        raise DataError("it is empty: the tool printed nothing, or the file was not pulled whole")
    return [_PREFIX.sub("", line.rstrip(), count=1) for line in text.splitlines()]


def search(lines: list[str], pattern: str) -> re.Match[str] | None:
    """The first line that holds the pattern."""
    compiled = re.compile(pattern)
    return next((found for line in lines if (found := compiled.search(line))), None)


def load_json(text: str) -> Any:
    """A JSON value.

    Raises:
        DataError: it is not whole, or no JSON; NaN and Infinity are none.
    """

    def refuse(word: str) -> Any:
        raise DataError(f"holds {word}, which is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not whole JSON: {str(error)[:120]}") from None


def as_number(value: Any, what: str) -> float:
    """A number out of JSON; a text that holds one is accepted, as CSV-minded tools write it.

    Raises:
        DataError: it is none.
    """
    if isinstance(value, str):
        return number(value, what)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise DataError(f"{what}: {str(value)[:60]!r} is not a number")
    return float(value)
