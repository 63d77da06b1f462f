"""A row, and what it means for two texts to be the same."""

from __future__ import annotations

import hashlib
import json
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True, slots=True)
class Row:
    """One example; `text` is normalised, `label` is None for a text that only a teacher labels."""

    id: str
    text: str
    label: str | None = None
    parent_id: str | None = None


def normalise(text: str) -> str:
    """The text as NFC, with every run of whitespace made one space and none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_key(text: str) -> str:
    """Equal for two texts that count as the same text: normalised, without regard to case."""
    # casefold can undo NFC (for example of U+0390), so it is composed once more
    return unicodedata.normalize("NFC", normalise(text).casefold())


def row_id(text: str, label: str | None, occurrence: int = 0) -> str:
    """16 hex digits from a normalised text, its label and how many equal rows came before it."""
    identity = json.dumps([text, label, occurrence])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def number_rows(pairs: Iterable[tuple[str, str | None]]) -> Iterator[Row]:
    """Rows with ids from normalised (text, label) pairs; equal pairs get different ids."""
    seen: Counter[tuple[str, str | None]] = Counter()
    for text, label in pairs:
        yield Row(row_id(text, label, seen[text, label]), text, label)
        seen[text, label] += 1


def shorten(value: object) -> str:
    """`repr` of an untrusted value for an error: a few dozen characters, control characters escaped."""
    return _SHORT.repr(value)
