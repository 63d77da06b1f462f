"""What a bundle says about texts beside the model: tokenizer, start and end tokens, chat template."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from edgedistill.errors import StageError
from edgedistill.exporters._tokens import ENDS, around, library
from edgedistill.exporters.litertlm.chat import CHATS, rendered, repaired
from edgedistill.quant.frozen import FrozenStudent

# LiteRT-LM's names of the networks whose chats it treats in a way of their own; `generic_model` has none.
MODELS = {"llama": "generic_model", "qwen2": "qwen2p5", "qwen3": "qwen3", "gemma3": "gemma3"}


class Speech(NamedTuple):
    """The tokenizer as a library object and as the bytes that ship, the id put before every text, the ids that end an
    answer, the chat template as it came and as it ships, and the texts of special tokens by role.
    """

    tokenizer: Any
    tokenizer_bytes: bytes
    start: int | None
    stops: tuple[int, ...]
    template: str | None
    shipped_template: str | None
    tokens: dict[str, str]


def speech_of(frozen: FrozenStudent) -> Speech:
    """Read it from the student's task.

    Raises:
        StageError: if the student is no decoder, or its task has no tokenizer, or one that LiteRT-LM cannot follow.
    """
    if frozen.family != "llama":
        raise StageError(f"LiteRT-LM runs decoders; a {frozen.family!r} student makes no text.")
    description = frozen.task.get("tokenizer_json")
    if description is None:
        raise StageError("a LiteRT-LM bundle takes texts: the student's task needs a tokenizer (tokenizer_json).")
    tokenizer = library(description)
    count, vocabulary = 1 + max(tokenizer.get_vocab().values(), default=-1), int(frozen.config["vocabulary"])
    if not 1 < count <= vocabulary:
        raise StageError(f"the tokenizer has {count} tokens, the student's vocabulary {vocabulary}.")
    given = dict(frozen.task.get("special_tokens") or {})
    unknown = [text for text in given.values() if not isinstance(text, str) or tokenizer.token_to_id(text) is None]
    if unknown:
        raise StageError(f"special_tokens name what is no token: {', '.join(map(str, unknown))}.")
    before, after = around(tokenizer)
    if len(before) > 1:
        raise StageError(f"LiteRT-LM puts one token before a text; the student's tokenizer puts {len(before)}.")
    ends = [tokenizer.token_to_id(text) for text in (*([given["eos"]] if "eos" in given else []), *ENDS)]
    stops = tuple(sorted({*after, *(end for end in ends if end is not None)}))
    if not stops:
        raise StageError('name the token that ends a text: special_tokens = {"eos": ...} in the student\'s task.')
    if before:
        given["bos"] = tokenizer.id_to_token(before[0])
    template = frozen.task.get("chat_template")
    start = _start(None if template is None else str(template), given, before, tokenizer)
    shipped = None if template is None else repaired(str(template), given)
    text = json.dumps(description, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return Speech(tokenizer, text.encode(), start, stops, template, shipped, given)


def _start(template: str | None, tokens: dict[str, str], before: list[int], tokenizer: Any) -> int | None:
    """The token before every text: the tokenizer's, or the one that the template begins with."""
    if template is None or "bos" not in tokens:
        return before[0] if before else None
    bos = tokens["bos"]
    texts = [(rendered(template, chat, tokens), rendered(template, chat, tokens | {"bos": ""})) for chat in CHATS]
    if any(without is not None and without.startswith(bos) for _, without in texts):
        if before:
            raise StageError(f"the chat_template writes {bos!r} itself, and LiteRT-LM adds it before every text.")
        return None
    if before or any(whole is not None and whole.startswith(bos) for whole, _ in texts):
        found: int = tokenizer.token_to_id(bos)
        return found
    return None
