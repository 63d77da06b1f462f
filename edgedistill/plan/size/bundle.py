"""What a LiteRT-LM bundle has around its .tflite: a header, what is said about texts, and the tokenizer.

Each begins at a multiple of 16 KiB (`litertlm_core.BLOCK_SIZE` of litert-lm-builder 0.18.1); the model comes last, and
nothing behind it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

BLOCK_BYTES = 16 * 1024
# A piece of a BPE tokenizer with its merges as zlib has it, where no tokenizer is known: SmolLM2's 49 152 take 13 each.
PIECE_BYTES = 13
LENGTH_BYTES = 8  # of the tokenizer, before it is packed


def bytes_around(pieces: int, tokenizer: int | None = None, about: int = 1) -> int:
    """Bytes before the model. `tokenizer`: those of its section, told from the number of `pieces` if not given.

    `about`: bytes of the special tokens and the chat template, which are hardly ever more than a block.
    """
    if tokenizer is None:
        tokenizer = LENGTH_BYTES + pieces * PIECE_BYTES
    return BLOCK_BYTES + _blocks(about) + _blocks(tokenizer)


def tokenizer_bytes(description: Mapping[str, Any]) -> int:
    """Bytes of the section that holds the content of a tokenizer.json."""
    text = json.dumps(description, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return LENGTH_BYTES + len(zlib.compress(text.encode()))


def _blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
