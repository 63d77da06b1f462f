"""One stage of distillation: a student, what the teacher answered, the losses of the spec, fake-quant or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Int
from torch import Tensor, nn

from edgedistill import training
from edgedistill.data.tensors import Outputs
from edgedistill.losses import LossBatch
from edgedistill.specs import DistilSpec, Progress

Collate = Callable[[Sequence[Sequence[int]]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Material:
    """The rows a student learns from: row n of everything belongs together (it was joined by sample id).

    `labels` is -1 where a row has none. `mask_id` replaces hidden tokens, `special_ids` are never hidden.
    """

    sequences: Sequence[Sequence[int]]
    labels: Int[Tensor, " rows"]
    teacher: Outputs
    collate: Collate
    mask_id: int
    special_ids: frozenset[int]


def distil(
    spec: DistilSpec,
    student: nn.Module,
    projector: nn.Linear,
    material: Material,
    losses: dict[str, ModuleType],
    seed: int,
    folder: Path,
    progress: Progress,
    freeze_observers: Callable[[], None] | None = None,
) -> list[tuple[int, float]]:
    """Train `student` (and the projector to the teacher's width) in place; return the loss curve.

    `seed` must differ between stages. The student may carry fake-quant; this loop neither knows nor cares, except
    that `freeze_observers` is called once `observe_fraction` of the steps are done.
    """
    batches = _Batches(material, spec.batch_size, seed)
    steps = steps_of(spec, len(material.sequences))
    both = nn.ModuleDict({"student": student, "projector": projector})
    terms = [
        (term.weight, losses[term.loss], dict(losses[term.loss].PARAMS) | dict(term.params)) for term in spec.losses
    ]

    def objective(step: int) -> Tensor:
        rows = batches.rows(step)
        ids, mask = batches.tokens(rows)
        if spec.mask_rate:
            ids = hide(ids, mask, spec.mask_rate, material, training.generator(seed, 1, step))
        out = student(ids, mask)
        batch = LossBatch(
            student_logits=out.logits,
            teacher_logits=material.teacher.logits[rows],
            student_pooled=projector(out.pooled),
            teacher_pooled=material.teacher.pooled[rows],
            labels=material.labels[rows],
        )
        return torch.stack([weight * term.loss(batch, **params) for weight, term, params in terms]).sum()

    def before_step(step: int) -> None:
        # also true on the first step of a continued run, so freezing does not depend on where a run was cut
        if freeze_observers and step >= spec.observe_fraction * steps:
            freeze_observers()

    recipe = training.Recipe(
        steps=steps,
        learning_rate=spec.learning_rate,
        schedule=spec.schedule,
        weight_decay=spec.weight_decay,
        gradient_clip=spec.gradient_clip,
        ema_decay=spec.ema_decay,
    )
    return training.train(both, objective, recipe, folder, progress, before_step)


def steps_of(spec: DistilSpec, rows: int) -> int:
    """The number of updates of a stage over `rows` rows."""
    return max(spec.steps_min, round(spec.epochs * -(-rows // spec.batch_size)))


def hide(
    ids: Int[Tensor, "batch length"],
    mask: Int[Tensor, "batch length"],
    rate: float,
    material: Material,
    generator: torch.Generator,
) -> Int[Tensor, "batch length"]:
    """Replace each ordinary token with the mask token with probability `rate`."""
    special = torch.isin(ids, torch.tensor(sorted(material.special_ids)))
    chosen = torch.rand(ids.shape, generator=generator) < rate
    return torch.where(chosen & ~special & (mask == 1), torch.full_like(ids, material.mask_id), ids)


class _Batches:
    """Which rows make up step n: shuffled by epoch, then sorted by length within groups, so little is padding."""

    GROUP = 16  # batches sorted together: enough to save most padding, few enough to keep batches random

    def __init__(self, material: Material, batch_size: int, seed: int) -> None:
        self.material, self.batch_size, self.seed = material, batch_size, seed
        self.lengths = torch.tensor([len(item) for item in material.sequences])
        self.per_epoch = -(-len(material.sequences) // batch_size)
        self._epoch, self._order = -1, [torch.empty(0, dtype=torch.long)]

    def rows(self, step: int) -> Int[Tensor, " batch"]:
        """The row indices of step `step`, a pure function of it."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order[position]

    def tokens(self, rows: Int[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """The collated batch of those rows."""
        return self.material.collate([self.material.sequences[int(row)] for row in rows])

    def _shuffled(self, epoch: int) -> list[Tensor]:
        generator = training.generator(self.seed, 0, epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[Tensor] = []
        for group in torch.split(order, self.batch_size * self.GROUP):
            batches += torch.split(group[self.lengths[group].argsort(stable=True)], self.batch_size)
        return [batches[int(i)] for i in torch.randperm(len(batches), generator=generator)]
