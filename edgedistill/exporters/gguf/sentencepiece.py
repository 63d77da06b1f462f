"""SentencePiece tokenizers, as tokenizer.json holds them since Llama 2 and Gemma, in llama.cpp's words.

tokenizer.json has a byte-pair encoding with merges in an order; llama.cpp's `llama` tokenizer has a score for each
piece and merges whatever neighbours make the piece with the highest. Both do the same where every way to make a piece
of two others is a merge, and the merges of one piece stand together. Files that were made from a SentencePiece model
are so; others are refused. Characters without a piece become the bytes `<0x00>` to `<0xFF>` in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgedistill.exporters.gguf.parsing import Value

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # enum llama_token_type
MARK = "▁"  # what both write for a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def is_sentencepiece(model: Mapping[str, Any]) -> bool:
    """Whether the model of a tokenizer.json is a byte-pair encoding of characters that falls back to bytes."""
    return model["type"] == "BPE" and bool(model.get("byte_fallback"))


def metadata(
    description: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], before: int, after: int
) -> tuple[dict[str, Value], list[str]]:
    """The keys of a file, and what of the tokenizer llama.cpp cannot do.

    `tokens` and `types` are the texts of all ids and their llama_token_type, as for any tokenizer; `before` and `after`
    count the ids that it puts around a text.
    """
    model = description["model"]
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    prefix, spaces = _spaces(description)
    missing = 256 - sum(_BYTE.fullmatch(token) is not None for token in tokens)
    odd = {
        "spaces that are not marked by ▁ throughout": not spaces,
        "a prefix or suffix of words": bool(model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")),
        "ignore_merges": bool(model.get("ignore_merges")),
        f"{missing} bytes without a piece": missing > 0,
        "more than one token before or after a text": max(before, after) > 1,
    }
    kinds = [_kind(token, kind, model.get("unk_token")) for token, kind in zip(tokens, types, strict=True)]
    pieces = {token for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL}
    scores, wrong = _scores(merges, pieces)
    ranked = np.array([scores.get(token, 0.0) for token in tokens], np.float32)
    found: dict[str, Value] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.scores": ranked,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.add_bos_token": before > 0,
        "tokenizer.ggml.add_eos_token": after > 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    return found, [what for what, present in odd.items() if present] + wrong


def _kind(token: str, kind: int, unknown: str | None) -> int:
    if token == unknown:
        return UNKNOWN
    return BYTE if kind == NORMAL and _BYTE.fullmatch(token) else kind


def _scores(merges: Sequence[tuple[str, ...]], pieces: set[str]) -> tuple[dict[str, float], list[str]]:
    """A score for each piece that merges make, the first ones the highest; and why scores cannot say it, if so."""
    scores: dict[str, float] = {}
    last = ""
    for pair in merges:
        made = "".join(pair)
        if made != last and made in scores:
            return scores, [f"merges that make {made!r} before and after those of other pieces"]
        scores.setdefault(made, -float(len(scores)))
        last = made
    given = set(merges)
    for piece in pieces:
        ways = {(piece[:n], piece[n:]) for n in range(1, len(piece)) if {piece[:n], piece[n:]} <= pieces}
        if ways - given:
            left, right = min(ways - given)
            return scores, [f"{left!r} and {right!r}, which make the piece {piece!r} and are not merged"]
    return scores, []


def _spaces(description: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a text gets a space before it, and whether its spaces become marks in a way that llama.cpp has."""
    normalizer, pre = description.get("normalizer"), description.get("pre_tokenizer")
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    steps = [step for step in steps if step is not None]
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
    prepends = {"type": "Prepend", "prepend": MARK}
    # after the marks are set there is no space left to split at
    idle = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if pre in (None, idle) and steps == [prepends, replaces]:
        return True, True
    if pre in (None, idle) and steps == [replaces]:
        return False, True
    if not steps and pre and pre["type"] == "Metaspace" and pre["replacement"] == MARK and pre.get("split") is False:
        # other schemes put no mark before a text that begins with a space, or behind a special token: llama.cpp does
        return False, pre["prepend_scheme"] == "never"
    return False, False
