"""What an app does to a text before the model, as files beside it: told from the tokenizer, and held against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgedistill.errors import SpecError, VerificationError
from edgedistill.pipeline.recheck import Bundle, inside, read_object
from edgedistill.specs import Profile

# What the code of the bundle goes by; the rest is prose.
RULES = ("lowercase", "strip_accents", "template", "pad_token", "unknown_token", "max_tokens", "signatures")


def vocabulary(tokenizer: Mapping[str, Any]) -> str:
    """The text of vocab.txt: a piece on each line, in the order of their ids."""
    pieces = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    return "".join(f"{piece}\n" for piece, _ in pieces)


def described(tokenizer: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    """What the app must do before and after the model, in words that need no library of ours."""
    normalizer = tokenizer.get("normalizer") or {}
    return {
        "tokenizer": "WordPiece, longest match first, vocab.txt (id = line number from 0)",
        "lowercase": bool(normalizer.get("lowercase", False)),
        "strip_accents": bool(normalizer.get("strip_accents") or normalizer.get("lowercase", False)),
        "template": "[CLS] text [SEP]",
        "pad_token": "[PAD]",
        "unknown_token": "[UNK]",
        "max_tokens": profile.student.buckets[-1],
        "truncation": "keep the first max_tokens - 1 ids, then [SEP]",
        "signatures": {f"length_{length}": length for length in profile.student.buckets},
        "signature_rule": "the smallest length that holds the ids; pad input_ids with [PAD], attention_mask with 0; "
        "a model with the one signature 'any' takes every length up to max_tokens and needs no padding",
        "inputs": {"input_ids": "int32 [1, length]", "attention_mask": "int32 [1, length]: 1 at tokens, 0 at padding"},
        "output": {"logits": "float32 [1, labels]; softmax gives probabilities; index = line of labels.txt from 0"},
    }


def check(bundle: Bundle, tokenizer: Mapping[str, Any], words: Any) -> None:
    """The bundle's tokenizer.json is that of the frozen student, `words`, and what apps read in its place is the same.

    Raises:
        VerificationError: naming the file that would make an app give the model other ids.
        SpecError: one is missing or damaged.
    """
    folder = bundle.folder
    if words is None:
        raise SpecError(
            f"{folder}: its frozen student has no tokenizer, as an older edgedistill built it. Build again."
        )
    if tokenizer != words:
        raise VerificationError(f"{folder / 'tokenizer.json'}: is not the tokenizer of the frozen student.")
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise SpecError(f"{folder / 'tokenizer.json'}: lists no pieces by their ids.")
    if inside(folder, "vocab.txt").read_bytes() != vocabulary(tokenizer).encode():
        raise VerificationError(f"{folder / 'vocab.txt'}: does not list the pieces of tokenizer.json by their ids.")
    found, wanted = read_object(folder, "preprocessing.json"), described(tokenizer, bundle.profile)
    for rule in RULES:
        if found.get(rule) != wanted[rule]:
            raise VerificationError(
                f"{folder / 'preprocessing.json'}: {rule} = {found.get(rule)!r}, and it is {wanted[rule]!r}."
            )
