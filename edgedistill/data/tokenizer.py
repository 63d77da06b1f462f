"""The one reader of a tokenizer.json, which may come from outside; nothing heavy is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgedistill.errors import StageError


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


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder that a stage wrote.

    Raises:
        StageError: its tokenizer.json cannot be read.
    """
    path = folder / "tokenizer.json"
    try:
        return parse_tokenizer(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(
            f"{path}: cannot be read ({error}). Remove {folder}; the same command makes it again."
        ) from None


def plain_tokenizer(folder: Path) -> Any | None:
    """A model folder's tokenizer read without transformers: its tokenizer.json, or the WordPiece of a vocab.txt.

    None where it takes transformers to make one, or what is there cannot be read. It splits texts as the folder's own
    does, but may add other special tokens around them.
    """
    from tokenizers.implementations import BertWordPieceTokenizer  # type: ignore[attr-defined]

    try:
        if (folder / "tokenizer.json").is_file():
            return parse_tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"))
        if not (folder / "vocab.txt").is_file():
            return None
        text = (folder / "vocab.txt").read_text(encoding="utf-8")
        about = folder / "tokenizer_config.json"
        given = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
        words = BertWordPieceTokenizer(
            {word: index for index, word in enumerate(text.removesuffix("\n").split("\n"))},
            lowercase=bool(given.get("do_lower_case", True)),
            strip_accents=given.get("strip_accents"),
            handle_chinese_chars=bool(given.get("tokenize_chinese_chars", True)),
        )
        return parse_tokenizer(words.to_str())
    except (OSError, ValueError, AttributeError, TypeError):
        return None
