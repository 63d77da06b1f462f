"""How figures and untrusted texts are written: one rule for the page, the Markdown, the plots and the JUnit file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import floor, log10

NOT_KNOWN = "–"
# What XML 1.0 cannot hold, lone surrogates included.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKDOWN = re.compile(r"([\\`*<>\[\]|&$~])")


def clean(text: str) -> str:
    """The text without characters that XML or HTML cannot hold."""
    return _FORBIDDEN.sub("\ufffd", text)


def markdown(text: str) -> str:
    """The text as it reads in a Markdown table cell: nothing in it is markup, and it is one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(clean(text).split()))


def figure(value: float | None, unit: str = "") -> str:
    """Three significant digits, thousands grouped, with the unit; a dash when there is no figure."""
    if value is None:
        return NOT_KNOWN
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    text = f"{value:,.{digits}f}" if size >= 1 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def limited(value: float, unit: str = "") -> str:
    """A limit as a person wrote it: no zeros after the point that nobody asked for."""
    return f"{value:,.6g} {unit}".strip()


def column(values: Iterable[float | None]) -> list[str]:
    """Figures of one column with the same number of decimals, so that they align; the smallest keeps three digits."""
    listed = list(values)
    sizes = [abs(value) for value in listed if value]
    digits = min(3, max(0, 2 - floor(log10(min(sizes))))) if sizes else 0
    return [NOT_KNOWN if value is None else f"{value:,.{digits}f}" for value in listed]


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage; less than all is never written as 100%."""
    if share is None:
        return NOT_KNOWN
    while digits < 6 and share < 1 and f"{100 * share:.{digits}f}" == f"{100:.{digits}f}":
        digits += 1
    return f"{100 * share:.{digits}f}%"


def shorten(text: str, length: int) -> str:
    """The text in at most `length` characters, ending in an ellipsis when something was cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def plain(value: object) -> str:
    """Any JSON value as a short text: lists with commas, mappings as `key value` pairs."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return " · ".join(f"{str(key).replace('_', ' ')} {plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence):
        return ", ".join(plain(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def listing(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
