"""A `bert` student that starts from its teacher's own layers: copied where sizes agree, reduced where it is smaller."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgedistill.students.bert import Config, check_layers
from edgedistill.students.bert.module import BertClassifier, build
from edgedistill.students.bert.reduction import fit_norms, layers_of, observe, outside, reduce_layers, rotated_axes
from edgedistill.students.bert.vocabulary import Trimmed

MOST_TEXTS, BATCH = 1000, 64
NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}


class Widening(NamedTuple):
    """Back to the teacher's width: teacher's hidden state ≈ basis @ student's + shift."""

    basis: Float[Tensor, "wide narrow"]
    shift: Float[Tensor, " wide"]


@torch.no_grad()
def start_from_layers(
    student: BertClassifier, encoder: nn.Module, trimmed: Trimmed, texts: Sequence[str]
) -> tuple[Widening, str]:
    """Fill every weight of the student but its classifier's; `check` has passed. Also says in words what was copied.

    With the teacher's sizes the student's answers are the teacher's, if its layer norms add the usual 1e-12.
    """
    whole = whole_teacher(student.config, encoder, trimmed)
    wide, config, used = whole.config, student.config, uniform_map(whole.config.layers, student.config.layers)
    note = f"layer {', '.join(str(n + 1) for n in used)} of the teacher's {wide.layers}"
    if (config.width, config.ffn) == (wide.width, wide.ffn):
        student.embeddings.load_state_dict(whole.embeddings.state_dict())
        for layer, n in zip(layers_of(student), used, strict=True):
            layer.load_state_dict(whole.layers[n].state_dict())
        return Widening(torch.eye(wide.width), torch.zeros(wide.width)), f"{note}, unchanged"
    batches = equal_lengths(trimmed, texts, config.max_length)
    seen = observe(whole, used, batches)
    basis = torch.eye(wide.width)
    if config.width < wide.width:
        streams = [moments.covariance for item in seen for moments in (item.entering, item.between, item.leaving)]
        # each stream counts alike, however large a layer norm has made it
        basis = rotated_axes(torch.stack([stream / stream.trace() for stream in streams]).sum(0), config.width)
    reduce_layers(student, [layers_of(whole)[n] for n in used], whole.embeddings, basis, seen)
    if config.width < wide.width:
        fit_norms(student, basis, seen, batches)
    shift = outside(seen[-1].leaving.mean.float(), basis)
    return Widening(basis, shift), f"{note}, width {wide.width} → {config.width}, ffn {wide.ffn} → {config.ffn}"


def check(config: Config, encoder: nn.Module) -> None:
    """Refuse what `start_from_layers` cannot do.

    Raises:
        TeacherError: the teacher is not a BERT encoder with layers like the student's.
        SpecError: the student's sizes cannot be cut from the teacher's.
    """
    about = getattr(encoder, "config", None)
    check_layers(config, {"model_type": type(encoder).__name__} if about is None else about.to_dict())


def uniform_map(deep: int, layers: int) -> list[int]:
    """The teacher's layer for each of the student's, from 0: evenly spaced, and always the last."""
    return [(n + 1) * deep // layers - 1 for n in range(layers)]


@torch.no_grad()
def whole_teacher(config: Config, encoder: nn.Module, trimmed: Trimmed) -> BertClassifier:
    """The teacher as a student of its own size, but for the vocabulary. A piece without a source is drawn at random."""
    about = encoder.config
    sizes = {
        "layers": about.num_hidden_layers,  # type: ignore[union-attr]
        "width": about.hidden_size,  # type: ignore[union-attr]
        "heads": about.num_attention_heads,  # type: ignore[union-attr]
        "ffn": about.intermediate_size,  # type: ignore[union-attr]
    }
    whole = build(Config(**(config.model_dump() | sizes))).eval()
    table = encoder.get_parameter("embeddings.word_embeddings.weight")
    for index, ids in enumerate(trimmed.sources):
        if ids:
            whole.embeddings.word.weight[index] = table[ids[0]] if len(ids) == 1 else table[list(ids)].mean(0)
    position = encoder.get_parameter("embeddings.position_embeddings.weight")[: config.max_length]
    # every token of a single text is of type 0
    whole.embeddings.position.copy_(position + encoder.get_parameter("embeddings.token_type_embeddings.weight")[0])
    whole.embeddings.norm.load_state_dict(encoder.get_submodule("embeddings.LayerNorm").state_dict())
    for n, layer in enumerate(layers_of(whole)):
        for ours, theirs in NAMES.items():
            source = encoder.get_submodule(f"encoder.layer.{n}.{theirs}")
            layer.get_submodule(ours).load_state_dict(source.state_dict())
    return whole


def equal_lengths(trimmed: Trimmed, texts: Sequence[str], longest: int) -> list[Int[Tensor, "batch length"]]:
    """Token ids of at most 1000 of the texts, drawn at random; a batch has texts of one length, so needs no padding."""
    chosen = [texts[n] for n in torch.randperm(len(texts))[:MOST_TEXTS].tolist()]
    found = [item.ids for item in trimmed.tokenizer.encode_batch(chosen)]
    cut = sorted((ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]] for ids in found), key=len)
    groups = [torch.tensor(list(group)) for _, group in groupby(cut, key=len)]
    return [batch for group in groups for batch in torch.split(group, BATCH)]
