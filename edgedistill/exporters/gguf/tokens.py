"""A `tokenizer.json` in GGUF's words, and the proof that llama.cpp then splits texts as the tokenizers library does.

A frozen student may carry, in its `task`:

- `tokenizer_json`: the content of its tokenizer.json; without it a file takes and gives ids only;
- `chat_template`: the Jinja text that turns messages into a prompt;
- `special_tokens`: text by role ("bos", "eos", "unk", "sep", "pad", "mask"), as in tokenizer_config.json. What is left
  out is taken from what the tokenizer puts around a text, then from the names in `ENDS`.

Supported are byte-level BPE (Radford et al. 2019) with a pre-tokenizer that llama.cpp has, SentencePiece's BPE as
Llama 2 and Gemma have it, and WordPiece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters._tokens import ENDS, around, library, texts_to_try
from edgedistill.exporters.gguf import sentencepiece
from edgedistill.exporters.gguf.parsing import Value

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # enum llama_token_type
KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's name of a pre-tokenizer, by the pattern that tokenizer.json splits at before the bytes
PATTERNS = {
    _CASES + _WORDS + r"\p{N}" + _REST: "qwen2",
    _CASES + _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
}
IGNORES_MERGES = ("llama-bpe",)  # what llama.cpp does for each of these names
SPACE = "\u2581"  # llama.cpp's mark of a word's beginning in a WordPiece vocabulary


class _Facts(NamedTuple):
    """A tokenizer: its library object, the texts of its ids, their types, and the ids it puts around a text."""

    model: Mapping[str, Any]
    tokens: list[str]
    types: list[int]
    before: list[int]
    after: list[int]


def token_metadata(task: Mapping[str, Any], vocabulary: int, architecture: str) -> dict[str, Value]:
    """The tokenizer's keys of a file; those of a file without one if the task names none.

    Raises:
        StageError: if llama.cpp has no such tokenizer, or its vocabulary is larger than the student's.
    """
    description = task.get("tokenizer_json")
    if description is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    try:
        facts = _facts(description, vocabulary)
        kind = facts.model["type"]
        if (kind == "WordPiece") != (architecture == "bert"):
            raise StageError(f"llama.cpp runs no {architecture} with a {kind} tokenizer.")
        if sentencepiece.is_sentencepiece(facts.model):
            found = _sentencepiece(description, facts)
        else:
            found = _bpe(description, facts) if kind == "BPE" else _wordpiece(description, facts)
        found |= _specials(description, facts, task.get("special_tokens") or {})
    except (KeyError, TypeError, AttributeError) as error:
        raise StageError(f"the student's tokenizer_json is not one of the tokenizers library: {error!r}.") from None
    if len(set(found["tokenizer.ggml.tokens"])) != vocabulary:  # type: ignore[arg-type]  # llama.cpp aborts on these
        raise StageError("two tokens of the student's tokenizer have the same text in GGUF.")
    template = task.get("chat_template")
    return found if template is None else found | {"tokenizer.chat_template": str(template)}


def check_tokens(task: Mapping[str, Any], tokenize: Callable[[str], list[int]]) -> None:
    """Compare the ids that llama.cpp gives for sample texts with those of the tokenizers library.

    Raises:
        VerificationError: naming the first text that differs.
    """
    description = task.get("tokenizer_json")
    if description is None:
        return
    tokenizer = library(description)
    for text in texts_to_try(description):
        expected, found = tokenizer.encode(text).ids, tokenize(text)
        if found != expected:
            raise VerificationError(
                f"llama.cpp splits {text!r} into {found[:12]}, the student's tokenizer into {expected[:12]}."
            )


def _facts(description: Mapping[str, Any], vocabulary: int) -> _Facts:
    model = description["model"]
    if model["type"] not in ("BPE", "WordPiece"):
        raise StageError(f"GGUF export knows BPE and WordPiece tokenizers; the student's is {model['type']!r}.")
    ids = dict(model["vocab"])
    added = {token["content"]: token for token in description.get("added_tokens", ())}
    ids |= {text: token["id"] for text, token in added.items()}
    if max(ids.values()) >= vocabulary:
        raise StageError(f"the tokenizer has {max(ids.values()) + 1} tokens, the student's vocabulary {vocabulary}.")
    tokens = [f"[UNUSED_{n}]" for n in range(vocabulary)]
    types = [UNUSED] * vocabulary
    for text, number in ids.items():
        tokens[number], types[number] = text, NORMAL
        if text in added:
            types[number] = CONTROL if added[text]["special"] else USER_DEFINED
    before, after = around(library(description))
    return _Facts(model, tokens, types, before, after)


def _bpe(description: Mapping[str, Any], facts: _Facts) -> dict[str, Value]:
    model = facts.model
    name = _pre_tokenizer(description.get("pre_tokenizer"))
    normalizer = (description.get("normalizer") or {}).get("type")
    odd = {
        # llama.cpp leaves texts as they are; what a text would be changed to by NFC, users mostly write at once
        f"normalizer {normalizer!r}": normalizer not in (None, "NFC"),
        "a prefix or suffix of words": bool(model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")),
        f"ignore_merges = {bool(model.get('ignore_merges'))} with pre-tokenizer {name!r}": bool(
            model.get("ignore_merges")
        )
        != (name in IGNORES_MERGES),
        "more than one token before or after a text": max(len(facts.before), len(facts.after)) > 1,
    }
    _refuse([what for what, present in odd.items() if present])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if not merges:
        raise StageError("the student's tokenizer has no merges; GGUF demands at least one.")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": facts.tokens,
        "tokenizer.ggml.token_type": np.array(facts.types, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": bool(facts.before),
        "tokenizer.ggml.add_eos_token": bool(facts.after),
    }


def _sentencepiece(description: Mapping[str, Any], facts: _Facts) -> dict[str, Value]:
    found, odd = sentencepiece.metadata(description, facts.tokens, facts.types, len(facts.before), len(facts.after))
    _refuse(odd)
    return found


def _pre_tokenizer(description: Any) -> str:
    """llama.cpp's name for what splits a text before merging."""
    steps = description["pretokenizers"] if description and description["type"] == "Sequence" else [description]
    kinds = [step and step["type"] for step in steps]
    last = steps[-1]
    if kinds[-1] == "ByteLevel" and not last.get("add_prefix_space", True):
        splits = last.get("use_regex", True)
        if kinds == ["ByteLevel"] and splits:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and splits and steps[0].get("individual_digits"):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not splits and steps[0]["behavior"] == "Isolated":
            pattern = steps[0]["pattern"].get("Regex")
            if not steps[0].get("invert") and pattern in PATTERNS:
                return PATTERNS[pattern]
    names = "gpt-2, smollm, qwen2, llama-bpe"
    raise StageError(f"llama.cpp has no pre-tokenizer like the student's ({kinds}); known here: {names}.")


def _wordpiece(description: Mapping[str, Any], facts: _Facts) -> dict[str, Value]:
    model, normalizer = facts.model, description.get("normalizer") or {}
    lowercase = bool(normalizer.get("lowercase"))
    accents = normalizer.get("strip_accents")
    odd = {
        f"normalizer {normalizer.get('type')!r}": normalizer.get("type") != "BertNormalizer",
        "text that is not cleaned": not (normalizer.get("clean_text") and normalizer.get("handle_chinese_chars")),
        "another pre-tokenizer than BERT's": (description.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer",
        f"prefix {model['continuing_subword_prefix']!r}": model["continuing_subword_prefix"] != "##",
        "no [CLS] before and [SEP] after a text": (len(facts.before), len(facts.after)) != (1, 1),
    }
    _refuse([what for what, present in odd.items() if present])

    def spelled(text: str, kind: int) -> str:
        if kind != NORMAL:
            return text
        return text.removeprefix("##") if text.startswith("##") else SPACE + text

    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [spelled(*pair) for pair in zip(facts.tokens, facts.types, strict=True)],
        "tokenizer.ggml.token_type": np.array(facts.types, np.int32),
        "tokenizer.ggml.normalizer.lowercase": lowercase,
        "tokenizer.ggml.normalizer.strip_accents": lowercase if accents is None else bool(accents),
    }


def _specials(description: Mapping[str, Any], facts: _Facts, given: Mapping[str, str]) -> dict[str, Value]:
    """Ids by role. llama.cpp has defaults for a GPT-2 and a BERT vocabulary, which would be wrong tokens of another."""
    ids = {text: number for number, text in enumerate(facts.tokens)}
    unknown = [text for role, text in given.items() if role not in KEYS or text not in ids]
    if unknown:
        raise StageError(f"special_tokens name what is no role or no token: {', '.join(unknown)}.")
    roles = {role: ids[text] for role, text in given.items()}
    if facts.model["type"] == "WordPiece":
        found = {"bos": facts.before[0], "sep": facts.after[0], "unk": ids[facts.model["unk_token"]]}
        found |= {role: ids[f"[{role.upper()}]"] for role in ("pad", "mask") if f"[{role.upper()}]" in ids}
        roles = found | {role: number for role, number in roles.items() if role not in ("bos", "sep", "unk")}
        more: dict[str, Value] = {"tokenizer.ggml.cls_token_id": np.uint32(facts.before[0])}
    else:
        ends = [*facts.after, *(ids[text] for text in ENDS if text in ids)]
        if "eos" not in roles and not ends:
            raise StageError('name the token that ends a text: special_tokens = {"eos": ...} in the student\'s task.')
        roles.setdefault("eos", (ends or [0])[0])
        roles.setdefault("bos", (facts.before or [roles["eos"]])[0])
        if sentencepiece.is_sentencepiece(facts.model) and facts.model.get("unk_token") in ids:
            roles.setdefault("unk", ids[facts.model["unk_token"]])
        more = {}
    return more | {f"tokenizer.ggml.{KEYS[role]}_token_id": np.uint32(roles[role]) for role in KEYS if role in roles}


def _refuse(odd: Sequence[str]) -> None:
    if odd:
        raise StageError(f"llama.cpp cannot split texts as the student's tokenizer does: {', '.join(odd)}.")
