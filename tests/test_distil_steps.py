"""The steps of a stage: how many, with which rows, which tokens are hidden, and when ranges freeze."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_stage import CLS, MASK, PAD, SEP, SOFT, UNK, material, run, spec_of, taught

from edgedistill import quant, training
from edgedistill.distil import hide, steps_of
from edgedistill.specs import QuantScheme
from edgedistill.students import bert
from edgedistill.students.bert.module import BertClassifier
from edgedistill.tasks import text_classification as task


@pytest.mark.parametrize(
    ("epochs", "rows", "batch", "least", "expected"),
    [
        (1, 100, 32, 1, 4),
        (3, 100, 50, 1, 6),
        (0.5, 100, 10, 1, 5),
        (1, 5, 64, 1, 1),
        (1, 5, 64, 30, 30),
        (2, 64, 64, 1, 2),
    ],
)
def test_steps_are_epochs_over_the_rows_and_at_least_the_minimum(
    epochs: float, rows: int, batch: int, least: int, expected: int
) -> None:
    assert steps_of(spec_of(epochs=epochs, batch_size=batch, steps_min=least), rows) == expected


def test_every_row_is_seen_once_in_every_epoch(tmp_path: Path) -> None:
    _, recorded = taught(50)
    marked = [[CLS, 5 + n, SEP] for n in range(50)]
    seen: list[int] = []

    def collate(batch: list[list[int]]) -> tuple[Tensor, Tensor]:
        seen.extend(item[1] - 5 for item in batch)
        return task.collate(batch, PAD)

    run(spec_of(SOFT, epochs=3), replace(material(marked, recorded), collate=collate), tmp_path)
    epochs = [seen[start : start + 50] for start in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_hold_rows_of_like_length_so_that_little_is_padding(tmp_path: Path) -> None:
    sequences, recorded = taught(400)
    tokens = padded = 0

    def collate(batch: list[list[int]]) -> tuple[Tensor, Tensor]:
        nonlocal tokens, padded
        ids, mask = task.collate(batch, PAD)
        tokens, padded = tokens + int(mask.sum()), padded + ids.numel()
        return ids, mask

    run(spec_of(SOFT, epochs=1), replace(material(sequences, recorded), collate=collate), tmp_path)
    assert padded / tokens < 1.1


@pytest.mark.parametrize(("fraction", "first"), [(0.5, 20), (0.8, 32), (0.0, 0), (0.81, 33)])
def test_observers_are_frozen_once_their_share_of_the_steps_is_done(
    tmp_path: Path, fraction: float, first: int
) -> None:
    stuff, step = material(*taught(64)), [-1]
    frozen_at: list[int] = []

    def collate(batch: list[list[int]]) -> tuple[Tensor, Tensor]:
        step[0] += 1
        return task.collate(batch, PAD)

    spec = spec_of(SOFT, epochs=10, fake_quant=True, observe_fraction=fraction)  # 4 batches by 10 epochs
    run(spec, replace(stuff, collate=collate), tmp_path, freezer=lambda student: frozen_at.append(step[0] + 1))
    assert frozen_at == list(range(first, 40))


def test_ranges_move_until_they_are_frozen_and_not_after(tmp_path: Path) -> None:
    stuff = material(*taught(64))
    scheme = QuantScheme(activations="static_int8")
    ranges: list[Tensor] = []

    def run_with(fraction: float) -> list[Tensor]:
        ranges.clear()
        models: list[BertClassifier] = []

        def prepare(student: BertClassifier) -> None:
            quant.prepare(student, scheme, bert.tensors(bert.TINY))
            models.append(student)

        def collate(batch: list[list[int]]) -> tuple[Tensor, Tensor]:
            ranges.append(models[0].state_dict()["classifier.ranges"].clone())
            return task.collate(batch, PAD)

        spec = spec_of(SOFT, epochs=5, fake_quant=True, observe_fraction=fraction)  # 20 steps
        run(spec, replace(stuff, collate=collate), tmp_path, prepare=prepare, freezer=quant.freeze_observers)
        return list(ranges)

    seen = run_with(0.5)
    assert len({tuple(item.flatten().tolist()) for item in seen[1:11]}) == 10
    assert all(torch.equal(item, seen[10]) for item in seen[10:])


def test_hiding_never_touches_special_tokens_or_padding_and_hides_the_right_share() -> None:
    sequences, recorded = taught(400)
    stuff = material(sequences, recorded)
    ids, mask = task.collate([[CLS, UNK, *item[1:]] for item in sequences], PAD)
    ids[mask == 0] = 50  # padding may be any id
    hidden = hide(ids, mask, 0.3, stuff, training.generator(1))
    ordinary = (ids >= 5) & (mask == 1)
    assert torch.equal(hidden[~ordinary], ids[~ordinary])
    changed = hidden[ordinary] != ids[ordinary]
    assert bool((hidden[ordinary][changed] == MASK).all())
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=4 * (0.21 / int(ordinary.sum())) ** 0.5)
    assert torch.equal(ids, torch.where(hidden == MASK, ids, hidden)), "the batch itself is not changed"
    assert torch.equal(hide(ids, mask, 0.3, stuff, training.generator(1)), hidden)


def test_a_rate_of_zero_hides_nothing() -> None:
    sequences, recorded = taught(20)
    ids, mask = task.collate(sequences, PAD)
    assert torch.equal(hide(ids, mask, 0.0, material(sequences, recorded), training.generator(1)), ids)


def test_each_step_hides_other_tokens_and_each_seed_others_again(tmp_path: Path) -> None:
    _, recorded = taught(1)
    stuff = material([[CLS, *range(5, 17), SEP]], recorded)

    def seen(seed: int) -> list[list[int]]:
        inputs: list[list[int]] = []

        def prepare(student: BertClassifier) -> None:
            student.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0][0].tolist()))

        run(spec_of(SOFT, epochs=20, mask_rate=0.5), stuff, tmp_path, seed, prepare)
        return inputs

    first = seen(1)
    assert len({tuple(ids) for ids in first}) > 18
    assert seen(1) == first
    assert seen(2) != first
