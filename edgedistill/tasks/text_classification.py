"""Text classification: a text and a label; the metric is accuracy on the held-out rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from edgedistill.specs import Quality

METRIC = "accuracy"


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut to `max_length` so that the closing token stays."""
    tokenizer.enable_truncation(max_length)
    return [item.ids for item in tokenizer.encode_batch(list(texts))]


def collate(
    sequences: Sequence[Sequence[int]], pad_id: int
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Ids and mask, padded at the end to the longest sequence."""
    length = max(len(item) for item in sequences)
    ids = torch.full((len(sequences), length), pad_id, dtype=torch.long)
    mask = torch.zeros(len(sequences), length, dtype=torch.long)
    for row, item in enumerate(sequences):
        ids[row, : len(item)] = torch.tensor(item)
        mask[row, : len(item)] = 1
    return ids, mask


def pad_id(tokenizer: Tokenizer) -> int:
    """The id that fills a batch; any id will do where the vocabulary has no padding token, as the mask hides it."""
    found = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
    return next((item for item in found if item is not None), 0)


def class_ids(labels: Sequence[str | None], names: Sequence[str]) -> list[int]:
    """The index of each label, -1 for a row without one."""
    index = {name: position for position, name in enumerate(names)}
    return [-1 if label is None else index[label] for label in labels]


def quality(logits: Float[np.ndarray, "rows classes"], labels: Sequence[int]) -> Quality:
    """Accuracy with its 95 % Wilson score interval (Wilson 1927)."""
    correct = int((logits.argmax(-1) == np.asarray(labels)).sum())
    return wilson(correct, len(labels))


def wilson(correct: int, rows: int) -> Quality:
    """Accuracy of `correct` out of `rows` (> 0) with the 95 % Wilson interval."""
    z, share = 1.959963984540054, correct / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * ((share * (1 - share) + z * z / (4 * rows)) / rows) ** 0.5 / (1 + z * z / rows)
    low, high = max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))  # whatever the rounding
    return Quality(accuracy=share, low=low, high=high, correct=correct, rows=rows)
