"""Text classification: a text and a label; the metric is accuracy on the held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from edgedistill.errors import DataError
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


def signature_for(signatures: Mapping[str, Any], tokens: int) -> Any:
    """The entry point of a file that runs a text of `tokens` tokens: the shortest that holds it.

    Raises:
        DataError: if the text is empty or longer than the longest one.
    """
    lengths = {name: item.inputs[0].shape[1] for name, item in signatures.items()}  # -1: any length
    fits = [name for name, length in lengths.items() if length < 0 or 1 <= tokens <= length]
    if tokens < 1 or not fits:
        raise DataError(f"A text of {tokens} tokens does not fit: the file takes 1 to {max(lengths.values())}.")
    return signatures[min(fits, key=lambda name: lengths[name])]


def feeds_for(signatures: Mapping[str, Any], ids: Sequence[int]) -> tuple[str, dict[str, NDArray[np.int32]]]:
    """The entry point that runs a text of these ids, and its inputs [1, length], padded.

    Raises:
        DataError: if the text does not fit the file.
    """
    signature = signature_for(signatures, len(ids))
    length = max(signature.inputs[0].shape[1], len(ids))
    feeds = {"input_ids": np.zeros((1, length), np.int32), "attention_mask": np.zeros((1, length), np.int32)}
    feeds["input_ids"][0, : len(ids)] = ids
    feeds["attention_mask"][0, : len(ids)] = 1
    return signature.name, feeds


def run_file(runner: Any, ids: Sequence[int]) -> NDArray[np.float32]:
    """An exported file's logits [classes] for one text, padded to the signature's length.

    Raises:
        DataError: if the text does not fit the file; StageError: if the runtime fails.
    """
    out: NDArray[np.float32] = runner.run(*feeds_for(runner.signatures, ids))["logits"][0]
    return out


def class_ids(labels: Sequence[str | None], names: Sequence[str]) -> list[int]:
    """The index of each label, -1 for a row without one."""
    index = {name: position for position, name in enumerate(names)}
    return [-1 if label is None else index[label] for label in labels]


def quality(logits: Float[np.ndarray, "rows classes"], labels: Sequence[int]) -> Quality:
    """Accuracy with its 95 % Wilson score interval (Wilson 1927)."""
    correct = int((logits.argmax(-1) == np.asarray(labels)).sum())
    return Quality.wilson(correct, len(labels))
