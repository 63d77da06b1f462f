"""What all parsers share: numbers as tools print them, the prefixes of logs, and one kind of error."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from edgedistill.errors import DataError

# 12, -3.5, 1.24027e+06, 1,234.5; 614,33 and 1.234,5 where a locale shaped them
NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\.\d{3})+,\d+|\d+(?:[.,]\d+)?)(?:[eE][-+]?\d+)?"
_CLOCK = r"\d\d:\d\d:\d\d(?:\.\d+)?"
# What logs put in front of a line, the first that fits (logcat is the first); then what the tool itself puts there.
_PREFIX = re.compile(
    rf"^(?:(?:\d{{4}}-)?\d\d-\d\d {_CLOCK}(?: [-+]\d{{4}})?(?:\s+\S{{1,32}})?\s+\d+\s+\d+\s+[VDIWEF]\s+[^:]*:\s"
    rf"|(?:\d{{4}}-)?\d\d-\d\d {_CLOCK}\s+\d+-\d+(?:/\S+)?\s+(?:[VDIWEF]/)?[\w.-]+(?:\s+\S+\s+[VDIWEF])?:?\s+"  # Studio
    rf"|(?:(?:\d{{4}}-)?\d\d-\d\d {_CLOCK}\s+)?[VDIWEF]/[^(:]{{1,64}}(?:\(\s*\d+\))?:\s"  # logcat -v time, brief, tag
    r"|[IWEF]\d{4} \d\d:\d\d:\d+\.\d+\s+\d+ [^\]]{1,200}\] "  # glog, absl
    rf"|\d{{4}}-\d\d-\d\d {_CLOCK}: [IWEF] [^\]]{{1,200}}\] "  # TensorFlow
    rf"|\d{{4}}-\d\d-\d\dT{_CLOCK}(?:Z|[-+]\d\d:?\d\d)\s"  # a CI's log
    r"|\d{1,4}\.\d\d\.\d{3}\.\d{3} [A-Z] "  # llama.cpp
    r")?(?:(?:INFO|WARNING|ERROR|VERBOSE|DEBUG):\s?)?(?:\[[\w./\\-]{1,200}:\d{1,6}\] ?)?"
)
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
LONGEST = 20_000_000  # characters; a log of a run is a thousand times smaller


def number(text: str, what: str = "number") -> float:
    """A finite number as a tool prints it.

    Raises:
        DataError: it is none.
    """
    cleaned = text.strip().strip('"')
    if not re.fullmatch(NUMBER, cleaned):
        raise DataError(f"{what}: {cleaned[:60]!r} is not a number")
    if re.fullmatch(r"[-+]?\d{1,3},\d{3}", cleaned):
        raise DataError(f"{what}: {cleaned!r} may be thousands or decimals: set LC_ALL=C for the tool")
    if "." in cleaned and cleaned.rfind(",") > cleaned.rfind("."):
        cleaned = cleaned.replace(".", "")  # 1.234,5
    elif "." in cleaned or cleaned.count(",") > 1:
        cleaned = cleaned.replace(",", "")  # 1,234.5 and 1,234,567
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
    """The lines without colours and what a log puts in front of each.

    Raises:
        DataError: it is empty, or no text of a sensible length.
    """
    if len(text) > LONGEST:
        raise DataError(f"{len(text)} characters: longer than the log of any run")
    plain = _ANSI.sub("", text) if "\x1b" in text else text
    if not plain.strip():
        raise DataError("it is empty: the tool printed nothing, or the file was not pulled whole")
    return [_PREFIX.sub("", line.rstrip(), count=1) for line in plain.splitlines()]


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
