"""SentencePiece's tokenizers of Llama 2 and Gemma: a real model's pieces, split by llama.cpp as by both libraries."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_students import CONFIGS, CORPUS, SCHEMES, TEXTS, rewritten

from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters import gguf
from edgedistill.exporters.gguf import tokens
from edgedistill.exporters.gguf.parsing import Value, parse
from edgedistill.exporters.gguf.writing import write
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.students import part

WORDS = ("the", "king", "said", "to", "his", "men", "that", "no", "one", "shall", "pass", "before", "last", "night")
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
KINDS = {
    "llama 2": {"normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, "pre_tokenizer": None},
    "gemma": {"normalizer": REPLACE, "pre_tokenizer": SPLIT},
    "metaspace": {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False},
    },
}


@functools.cache
def trained(prefix: bool) -> bytes:
    """A SentencePiece BPE model of 420 pieces, 256 of them bytes, as Llama 2's is made."""
    import sentencepiece

    draw, lines = random.Random(0), [*CORPUS, *("naïve cafés; 42 words" for _ in range(3))]
    lines += [" ".join(draw.choices(WORDS, k=9)) + draw.choice(".!?,") for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=420, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
        allow_whitespace_only_pieces=True, split_digits=True, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return model.getvalue()


def processor(kind: str) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=trained(kind == "llama 2"))


def tokenizer(kind: str) -> dict[str, Any]:
    """The tokenizer.json of that model: a merge for every way to make a piece of two others, the best pieces first."""
    pieces = processor(kind)
    names = [pieces.id_to_piece(n) for n in range(pieces.get_piece_size())]
    vocabulary = {name: number for number, name in enumerate(names)}
    plain = [n for n in range(len(names)) if not (pieces.is_control(n) or pieces.is_unknown(n) or pieces.is_byte(n))]
    known = {names[n] for n in plain}
    merges = []
    for number in sorted(plain, key=lambda n: -pieces.get_score(n)):
        name = names[number]
        ways = [(name[:n], name[n:]) for n in range(1, len(name)) if {name[:n], name[n:]} <= known]
        merges += sorted(ways, key=lambda way: (vocabulary[way[0]], vocabulary[way[1]]))
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": n, "content": names[n], **special} for n in (0, 1, 2)],
        **KINDS[kind],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocabulary,
            "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip


def speaking(description: dict[str, Any]) -> FrozenStudent:
    config = CONFIGS["gemma3"].model_copy(update={"vocabulary": 424, "layers": 1})
    torch.manual_seed(0)
    model = part("llama", "module").build(config)
    return freeze(model, "llama", config, SCHEMES["int8"], {"tokenizer_json": description})


def many_texts() -> list[str]:
    """Ordinary ones, and 300 of random characters, spaces among them in odd places."""
    draw = random.Random(1)
    letters = "aeinrst  hkol▁.,!?019\n\té你🙂<>/s"
    return [*TEXTS, *("".join(draw.choices(letters, k=draw.randint(1, 40))) for _ in range(300))]


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_splits_texts_as_sentencepiece_does(kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    description = tokenizer(kind)
    frozen, path = speaking(description), tmp_path / "speaking.gguf"
    gguf.export(frozen, [8], path)
    gguf.verify(frozen, path)
    reference, original = Tokenizer.from_str(json.dumps(description)), processor(kind)
    with contextlib.closing(gguf.load(path)) as found:
        for text in many_texts():
            ids = found.tokenize(text)
            assert ids == reference.encode(text).ids, text
            if "▁" not in text and "<" not in text and text:  # marks in a text are spaces to SentencePiece alone
                assert ids == [1, *original.encode(text)], text
    metadata = parse(path).metadata
    assert metadata["tokenizer.ggml.add_space_prefix"] is (kind == "llama 2")
    roles = [metadata[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "unknown")]
    assert roles == [1, 2, 0]


def test_a_changed_score_is_found(tmp_path: Path) -> None:
    frozen, path = speaking(tokenizer("llama 2")), tmp_path / "speaking.gguf"
    write(frozen, [8], path)

    def turned(metadata: dict[str, Value], _: Any) -> None:
        metadata["tokenizer.ggml.scores"] = -metadata["tokenizer.ggml.scores"]  # type: ignore[operator]

    spoiled = rewritten(path, tmp_path / "spoiled.gguf", turned)
    with pytest.raises(VerificationError, match=r"tokenizer\.ggml\.scores"):
        gguf.verify(frozen, spoiled)
    noticed = pytest.raises(VerificationError, match=r"llama\.cpp splits")
    with contextlib.closing(gguf.load(spoiled)) as found, noticed:
        tokens.check_tokens(frozen.task, found.tokenize)


def test_what_llama_cpp_would_do_otherwise_is_refused() -> None:
    description = tokenizer("llama 2")
    pair = next(pair for pair in description["model"]["merges"] if len("".join(pair)) > 3)

    def changed(**model: Any) -> dict[str, Any]:
        found = copy.deepcopy(description)
        found["model"] |= model
        return found

    merges = description["model"]["merges"]
    apart = [*merges, *(other for other in merges if "".join(other) == "".join(pair))]
    fewer_bytes = {key: value for key, value in description["model"]["vocab"].items() if key != "<0x41>"}
    first = changed() | {"normalizer": None, "pre_tokenizer": KINDS["metaspace"]["pre_tokenizer"]}
    first["pre_tokenizer"] = {**first["pre_tokenizer"], "prepend_scheme": "first"}
    refused = {
        "are not merged": changed(merges=[other for other in merges if other != pair]),
        "before and after": changed(merges=apart),
        "1 bytes without a piece": changed(vocab=fewer_bytes),
        "spaces that are not marked": first,
        "prefix or suffix": changed(end_of_word_suffix="</w>"),
        "ignore_merges": changed(ignore_merges=True),
    }  # fmt: skip
    for told, wrong in refused.items():
        with pytest.raises(StageError, match=told):
            tokens.token_metadata({"tokenizer_json": wrong}, 424, "llama")
