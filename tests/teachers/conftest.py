"""A real teacher folder, as `save_pretrained` leaves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["my", "card", "money", "send", "the", "##s", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture
def teacher_folder(tmp_path: Path) -> Callable[..., Path]:
    """`teacher_folder()` is a classifier of three labels; `teacher_folder(classifier=False)` a bare encoder."""

    def make(name: str = "teacher", classifier: bool = True, save: bool = True, **changes: object) -> Path:
        folder = tmp_path / name
        torch.manual_seed(0)
        sizes: dict[str, object] = {"vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32}
        sizes |= {"hidden_dropout_prob": 0.5, "id2label": {0: "lost", 1: "stolen", 2: "other"}}
        config = BertConfig(**(sizes | changes))  # type: ignore[arg-type]
        model = BertForSequenceClassification(config) if classifier else BertModel(config)
        model.save_pretrained(folder)
        vocabulary = tmp_path / "vocab.txt"
        vocabulary.write_text("\n".join([*SPECIALS, *WORDS]))
        BertTokenizerFast(vocab={word: n for n, word in enumerate([*SPECIALS, *WORDS])}).save_pretrained(folder)
        return folder

    return make
