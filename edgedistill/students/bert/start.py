"""Where a `bert` student starts: a tokenizer cut from the teacher's and weights reduced from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgedistill.students.bert import Config
from edgedistill.students.bert.module import BertClassifier, build
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

    `init` is `embeddings` (the teacher's word vectors, their width reduced by PCA) or `random`.
    """
    trimmed = trim(tokenizer, texts, limit)
    sizes = Config(**{**config, "vocabulary": len(trimmed.sources)})
    student = build(sizes)
    table = body.get_input_embeddings().weight.detach()  # type: ignore[operator, union-attr]
    if init == "embeddings":
        basis = copy_embeddings(student, table, trimmed)
    else:
        basis = torch.randn(table.shape[1], sizes.width) / sizes.width**0.5
    note = f"{len(trimmed.sources)} of {len(table)} word pieces kept, {init} start"
    projector = {"weight": basis.contiguous(), "bias": torch.zeros(len(basis))}
    weights = {name: value.contiguous() for name, value in student.state_dict().items()}
    return Started(sizes.model_dump(), weights, projector, trimmed.tokenizer, note)


@torch.no_grad()
def copy_embeddings(
    student: BertClassifier, table: Float[Tensor, "pieces wide"], trimmed: Trimmed
) -> Float[Tensor, "wide narrow"]:
    """Fill the word embeddings with the teacher's, reduced by PCA; return the orthonormal basis of the reduction.

    A piece that the teacher spells with several gets their mean. The basis is rotated at random: PCA sorts its axes by
    variance, and a layer norm over axes of very different size would drown the small ones. Rows are scaled so that the
    layer norm's input has unit variance, as a trained encoder's has.
    """
    width = student.config.width
    rows = torch.stack(
        [table[list(ids)].mean(0) if ids else torch.full((table.shape[1],), torch.nan) for ids in trimmed.sources]
    )
    known = ~rows.isnan().any(1)
    centred = rows - rows[known].mean(0)
    kept = min(width, table.shape[1])
    _, vectors = torch.linalg.eigh(centred[known].double().T @ centred[known].double())
    basis = torch.zeros(table.shape[1], width)
    rotation, upper = torch.linalg.qr(torch.randn(kept, kept, dtype=torch.float64))
    basis[:, :kept] = (vectors[:, -kept:] @ (rotation * upper.diagonal().sign())).float()
    reduced = centred @ basis
    reduced = reduced / reduced[known].std(1).mean()
    student.embeddings.word.weight[known] = reduced[known]
    return basis
