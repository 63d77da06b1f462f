"""Where a `bert` student starts: a tokenizer cut from the teacher's and weights reduced from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgedistill.students.bert import Config
from edgedistill.students.bert.layers import check, start_from_layers
from edgedistill.students.bert.module import BertClassifier, build
from edgedistill.students.bert.reduction import rotated_axes
from edgedistill.students.bert.vocabulary import Trimmed, trim


class Started(NamedTuple):
    """A student before training. `projector` maps its pooled embedding to the teacher's width; it is never exported."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    projector: dict[str, Tensor]
    tokenizer: Tokenizer
    note: str


def start(
    config: Mapping[str, Any],
    init: str,
    limit: int,
    tokenizer: Tokenizer,
    body: nn.Module,
    texts: Sequence[str],
) -> Started:
    """Build the student. Random draws come from torch's global generator, which the caller has seeded.

    `init` is `layers` (the teacher's own layers, reduced where the student is smaller), `embeddings` (the teacher's
    word vectors, their width reduced by PCA) or `random`.

    Raises:
        TeacherError: `init` is `layers` and the teacher is not a BERT encoder.
        SpecError: `init` is `layers` and the student's sizes do not fit the teacher's.
    """
    encoder = body.base_model if isinstance(body.base_model, nn.Module) else body
    if init == "layers":
        check(Config(**config), encoder)
    trimmed = trim(tokenizer, texts, limit)
    sizes = Config(**{**config, "vocabulary": len(trimmed.sources)})
    student = build(sizes)
    width = encoder.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    if init == "embeddings":
        reduce_embeddings(student, encoder, trimmed)
    projector = nn.Linear(sizes.width, _pooled_width(encoder, width))
    note = f"{len(trimmed.sources)} word pieces kept, {init} start"
    if init == "layers":
        widening, copied = start_from_layers(student, encoder, trimmed, texts)
        projector.load_state_dict({"weight": widening.basis, "bias": widening.shift})
        note += f": {copied}"
    tensors = {name: value.contiguous() for name, value in student.state_dict().items()}
    return Started(sizes.model_dump(), tensors, dict(projector.state_dict()), trimmed.tokenizer, note)


@torch.no_grad()
def reduce_embeddings(student: BertClassifier, encoder: nn.Module, trimmed: Trimmed) -> None:
    """Fill the student's word and position embeddings with the teacher's, their width reduced by PCA.

    A piece that the teacher spells with several gets their mean. The gain of the teacher's layer norm is folded in, as
    the student's own starts at 1. PCA is weighted by how often a piece occurs. Both tables are scaled alike, so that
    the layer norm sees unit variance.
    """
    table = encoder.get_input_embeddings().weight  # type: ignore[operator]
    parts = getattr(encoder, "embeddings", None)
    gain = getattr(getattr(parts, "LayerNorm", None), "weight", torch.ones(table.shape[1]))
    known = torch.tensor([bool(ids) for ids in trimmed.sources])
    rows = torch.stack([table[list(ids)].mean(0) for ids in trimmed.sources if ids]) * gain
    weights = torch.tensor([float(count) for count, ids in zip(trimmed.counts, trimmed.sources, strict=True) if ids])
    weights = (weights / weights.sum())[:, None]
    centred = rows - (rows * weights).sum(0)
    weighted = (centred * weights.sqrt()).double()
    basis = rotated_axes(weighted.T @ weighted, student.config.width)
    reduced = centred @ basis
    scale = 1.0 / (reduced.std(1, keepdim=True) * weights).sum()
    student.embeddings.word.weight[known] = reduced * scale
    positions = getattr(parts, "position_embeddings", None)
    if isinstance(positions, nn.Embedding):
        # RoBERTa counts positions from its padding id on, and its table says so
        first = 0 if positions.padding_idx is None else positions.padding_idx + 1
        used = positions.weight[first : first + student.config.max_length] * gain
    if isinstance(positions, nn.Embedding) and len(used) == student.config.max_length:
        student.embeddings.position.copy_((used - used.mean(0)) @ basis * scale)


def _pooled_width(encoder: nn.Module, fallback: int) -> int:
    """The width of the teacher's last hidden states, which is not that of its embeddings in every architecture."""
    return int(getattr(encoder.config, "hidden_size", None) or getattr(encoder.config, "dim", None) or fallback)
