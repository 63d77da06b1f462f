"""Text classification: batches, truncation, labels and the interval of the metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgedistill.specs import Quality
from edgedistill.tasks import text_classification as task

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(20))]


def tokenizer() -> Tokenizer:
    built = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return built


@pytest.mark.parametrize("limit", [3, 8, 21, 22, 100])
def test_a_text_that_is_cut_keeps_both_its_special_tokens(limit: int) -> None:
    text = " ".join(f"w{n}" for n in range(20))
    (ids,) = task.encode(tokenizer(), [text], limit)
    assert len(ids) == min(limit, 22)
    assert (ids[0], ids[-1]) == (2, 3)
    assert ids[1:-1] == list(range(4, 4 + len(ids) - 2)), "the beginning of the text is kept"


def test_texts_are_encoded_in_order_and_unknown_words_stay_visible() -> None:
    assert task.encode(tokenizer(), ["w1", "nothing w0", ""], 8) == [[2, 5, 3], [2, 1, 4, 3], [2, 3]]


def test_encoding_is_not_changed_by_what_was_encoded_before() -> None:
    shared = tokenizer()
    short = task.encode(shared, ["w1 w2 w3 w4"], 4)
    assert task.encode(shared, ["w1 w2 w3 w4"], 100) != short
    assert task.encode(shared, ["w1 w2 w3 w4"], 4) == short


@pytest.mark.parametrize("pad", [0, 7])
def test_a_batch_is_padded_at_the_end_to_its_longest_text(pad: int) -> None:
    ids, mask = task.collate([[2, 3], [2, 9, 9, 3], [2, 9, 3]], pad)
    assert ids.tolist() == [[2, 3, pad, pad], [2, 9, 9, 3], [2, 9, 3, pad]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert ids.dtype == mask.dtype == torch.long


def test_the_padding_id_is_the_one_of_the_vocabulary() -> None:
    def with_pad(name: str) -> Tokenizer:
        return Tokenizer(models.WordLevel({"a": 0, "b": 1, name: 2}, unk_token="a"))

    assert task.pad_id(tokenizer()) == 0
    assert task.pad_id(with_pad("[PAD]")) == 2
    assert task.pad_id(with_pad("<pad>")) == 2
    assert task.pad_id(with_pad("c")) == 0


def test_labels_become_their_position_and_rows_without_one_become_minus_one() -> None:
    assert task.class_ids(["b", None, "a", "b"], ["a", "b"]) == [1, -1, 0, 1]


# R: binom::binom.confint(k, n, methods = "wilson"); the first is the worked example of Newcombe 1998, table I
@pytest.mark.parametrize(
    ("correct", "rows", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_published_one(correct: int, rows: int, low: float, high: float) -> None:
    found = Quality.wilson(correct, rows)
    assert found.accuracy == correct / rows
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)
    mirrored = Quality.wilson(rows - correct, rows)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high), abs=1e-12)


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_the_interval_holds_the_share_and_stays_between_zero_and_one(rows: int) -> None:
    for correct in {0, 1, rows // 2, rows}:
        found = Quality.wilson(correct, rows)
        assert 0 <= found.low <= found.accuracy <= found.high <= 1


def test_the_interval_covers_the_truth_in_about_95_of_100_samples() -> None:
    draws = np.random.default_rng(0).binomial(60, 0.8, 2000)
    covered = [found.low <= 0.8 <= found.high for found in (Quality.wilson(int(k), 60) for k in draws)]
    assert 0.93 < np.mean(covered) < 0.975


def test_quality_counts_the_rows_whose_largest_logit_is_the_label() -> None:
    logits = np.array([[3.0, 1.0], [0.0, 1.0], [2.0, 5.0], [9.0, 1.0]])
    found = task.quality(logits, [0, 1, 0, -1])
    assert (found.correct, found.rows, found.accuracy) == (2, 4, 0.5)
