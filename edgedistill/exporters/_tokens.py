"""What formats that carry a tokenizer ask of a student's `tokenizer_json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edgedistill.data.tokenizer import parse_tokenizer
from edgedistill.errors import StageError

# tokens that end an answer or a text, as published models name them
ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
SAMPLES = (
    "Hello, world! How's it going?",
    "transfer $1,234.56 to account no. 007 -- ASAP (please)",
    "  two  spaces,\ta tab\nand\n\nnew lines  ",
    "naïve café, Zürich, œuvre, señor, smörgåsbord",
    "Привет мир; γειά σου; שלום; 你好,世界。 こんにちは",
    "def f(x):\n    return x**2 + 3*x - 1  # y = f(2024)",
    "I'll say we've SHOUTED: DON'T, they're what'd it's",
    "emoji 🙂🚀 and symbols © ™ ½ → ≤ §",
    "a",
)


class Around(NamedTuple):
    """The ids that a tokenizer puts before and after a text."""

    before: list[int]
    after: list[int]


def library(description: Mapping[str, Any]) -> Any:
    """The tokenizer of a tokenizer.json, which neither cuts nor fills up texts.

    Raises:
        StageError: if it is none.
    """
    try:
        tokenizer = parse_tokenizer(json.dumps(description))
    except ValueError as error:
        raise StageError(f"the student's tokenizer_json is not one of the tokenizers library: {error}.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def around(tokenizer: Any) -> Around:
    """What stands before and after the ids of a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    at = next((n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare), 0)
    return Around(whole[:at], whole[at + len(bare) :])


def texts_to_try(description: Mapping[str, Any]) -> Sequence[str]:
    """Texts that tell tokenizers apart, those with the student's special tokens among them."""
    special = [token["content"] for token in description.get("added_tokens", ()) if token.get("special")]
    return *SAMPLES, *(f"{token}user\nHello{token} again" for token in special[:8])
