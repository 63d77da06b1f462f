"""The one reader of a tokenizer.json, which may come from outside."""

from __future__ import annotations

from typing import Any


def parse_tokenizer(text: str) -> Any:
    """The tokenizer that the text of a tokenizer.json describes.

    Raises:
        ValueError: if it is none, with what the library says.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception for a damaged description
        raise ValueError(str(error)[:200]) from None
