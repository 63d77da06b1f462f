"""A stage of distillation on a toy task: token groups decide the class, and the teacher counts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill import catalog, distil
from edgedistill.distil import Material
from edgedistill.record import Recorded
from edgedistill.specs import DistilSpec, LossTerm, Silent
from edgedistill.students import bert
from edgedistill.students.bert.module import BertClassifier, build
from edgedistill.tasks import text_classification as task

PAD, UNK, CLS, SEP, MASK = range(5)
GROUPS = torch.arange(bert.TINY.vocabulary) % 3
SOFT, LABELS, POOLED = LossTerm(loss="soft_kl"), LossTerm(loss="cross_entropy"), LossTerm(loss="pooled_cosine")


def taught(rows: int = 200, seed: int = 0) -> tuple[list[list[int]], Recorded]:
    """Token ids of made-up texts and what the teacher answers to them, by id."""
    generator = torch.Generator().manual_seed(seed)
    sequences, counts = [], []
    for row in range(rows):
        length = int(torch.randint(3, 13, (1,), generator=generator))
        tokens = torch.randint(5, bert.TINY.vocabulary, (length,), generator=generator)
        favoured = tokens - tokens % 3 + row % 3  # half of the tokens are of the row's own group
        tokens = torch.where(torch.rand(length, generator=generator) < 0.5, favoured.clamp(5, 119), tokens)
        sequences.append([CLS, *tokens.tolist(), SEP])
        counts.append(torch.bincount(GROUPS[tokens], minlength=3).float() / length)
    logits = 8 * torch.stack(counts)
    pooled = logits @ torch.randn(3, 24, generator=generator)
    return sequences, Recorded(tuple(f"row{n}" for n in range(rows)), logits, pooled)


def material(sequences: list[list[int]], recorded: Recorded, labels: Tensor | None = None) -> Material:
    rows = [f"row{n}" for n in range(len(sequences))]
    answers = recorded.of(rows)
    return Material(
        sequences=sequences,
        labels=answers.logits.argmax(-1) if labels is None else labels,
        teacher=answers,
        collate=lambda batch: task.collate(batch, PAD),
        mask_id=MASK,
        special_ids=frozenset((PAD, UNK, CLS, SEP, MASK)),
    )


def spec_of(*losses: LossTerm, **changes: Any) -> DistilSpec:
    values: dict[str, Any] = {"name": "toy", "epochs": 5, "batch_size": 16, "learning_rate": 5e-3}
    return DistilSpec(**(values | changes), losses=losses or (SOFT,))


def run(
    spec: DistilSpec,
    stuff: Material,
    folder: Path,
    seed: int = 7,
    prepare: Callable[[BertClassifier], object] = lambda student: None,
    freezer: Callable[[BertClassifier], None] | None = None,
) -> tuple[BertClassifier, nn.Linear, list[tuple[int, float]]]:
    torch.manual_seed(0)
    student, projector = build(bert.TINY), nn.Linear(bert.TINY.width, stuff.teacher.pooled.shape[1])
    prepare(student)
    plugins = {term.loss: catalog.load_plugin("losses", term.loss) for term in spec.losses}
    freeze = (lambda: freezer(student)) if freezer else None
    curve = distil.distil(spec, student, projector, stuff, plugins, seed, folder, Silent(), freeze)
    return student, projector, curve


@torch.no_grad()
def agreement(student: nn.Module, seed: int = 1) -> float:
    """Share of unseen rows where the student's answer is the teacher's."""
    sequences, recorded = taught(seed=seed)
    logits = student(*task.collate(sequences, PAD)).logits
    return float((logits.argmax(-1) == recorded.logits.argmax(-1)).float().mean())


def assert_same_bits(one: nn.Module, two: nn.Module) -> None:
    assert [n for n, v in one.state_dict().items() if not torch.equal(v, two.state_dict()[n])] == []
