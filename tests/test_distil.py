"""One stage of distillation on a toy task: token groups decide the class, and the teacher counts them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgedistill import catalog, distil, quant, training
from edgedistill.data.tensors import Outputs
from edgedistill.distil import Material, hide, steps_of
from edgedistill.record import Recorded
from edgedistill.specs import DistilSpec, LossTerm, QuantScheme, Silent
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


def test_a_stage_lowers_the_loss_and_the_student_learns_what_the_teacher_answers(tmp_path: Path) -> None:
    stuff = material(*taught())
    student, projector, curve = run(spec_of(SOFT, POOLED, epochs=20), stuff, tmp_path)
    assert curve[-1][1] < 0.3 * curve[0][1]
    assert agreement(student) > 0.9
    with torch.no_grad():
        pooled = projector(student(*task.collate(stuff.sequences, PAD)).pooled)
    assert float(torch.cosine_similarity(pooled, stuff.teacher.pooled).mean()) > 0.9


def test_answers_that_belong_to_other_rows_teach_nothing(tmp_path: Path) -> None:
    sequences, recorded = taught(600)  # too many to learn by heart in this time
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0))
    permuted = replace(recorded, logits=recorded.logits[order])
    spec = spec_of(SOFT, epochs=7)
    right, _, falling = run(spec, material(sequences, recorded), tmp_path)
    wrong, _, flat = run(spec, material(sequences, permuted), tmp_path)
    assert falling[-1][1] < 0.05 * falling[0][1]
    assert flat[-1][1] > 0.3 * flat[0][1]
    assert agreement(right) > 0.9
    assert agreement(wrong) < 0.6


def test_the_order_of_the_record_does_not_matter_since_rows_are_joined_by_id(tmp_path: Path) -> None:
    sequences, recorded = taught()
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(3))
    shuffled = Recorded(tuple(recorded.ids[int(n)] for n in order), recorded.logits[order], recorded.pooled[order])
    spec = spec_of(SOFT, LABELS, POOLED)
    one, projector, curve = run(spec, material(sequences, recorded), tmp_path)
    two, other, same = run(spec, material(sequences, shuffled), tmp_path)
    assert_same_bits(one, two)
    assert_same_bits(projector, other)
    assert curve == same


def test_equal_seeds_give_equal_bits_and_other_seeds_another_order(tmp_path: Path) -> None:
    stuff = material(*taught())
    spec = spec_of(SOFT, POOLED, mask_rate=0.2, ema_decay=0.9)
    one, _, curve = run(spec, stuff, tmp_path, seed=1)
    torch.manual_seed(99)  # nothing may come from the global generator
    two, _, same = run(spec, stuff, tmp_path, seed=1)
    assert_same_bits(one, two)
    assert curve == same
    assert run(spec, stuff, tmp_path, seed=2)[2] != curve


@pytest.mark.parametrize("mask_rate", [0.0, 0.3])
def test_a_stage_that_is_cut_and_continued_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask_rate: float
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_S", 0)
    stuff = material(*taught(100))
    spec = spec_of(SOFT, POOLED, mask_rate=mask_rate, ema_decay=0.9, fake_quant=True, observe_fraction=0.5)
    scheme = QuantScheme(activations="static_int8")

    def prepare(student: BertClassifier) -> None:
        quant.prepare(student, scheme, bert.tensors(bert.TINY))

    for name in ("cut", "whole"):
        (tmp_path / name).mkdir()
    wanted, projector, curve = run(spec, stuff, tmp_path / "whole", 7, prepare, quant.freeze_observers)
    for limit in (9, 25):  # before and after the ranges freeze
        stopping = replace(stuff, collate=stop_after(limit))
        with pytest.raises(KeyboardInterrupt):
            run(spec, stopping, tmp_path / "cut", 7, prepare, quant.freeze_observers)
    student, other, same = run(spec, stuff, tmp_path / "cut", 7, prepare, quant.freeze_observers)
    assert_same_bits(student, wanted)
    assert_same_bits(projector, other)
    assert curve == same


def stop_after(calls: int) -> Callable[..., tuple[Tensor, Tensor]]:
    left = [calls]

    def collate(batch: list[list[int]]) -> tuple[Tensor, Tensor]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return task.collate(batch, PAD)

    return collate


def test_a_term_of_weight_zero_leaves_the_run_as_if_it_were_not_there(tmp_path: Path) -> None:
    stuff = material(*taught(60))
    alone, _, _ = run(spec_of(LABELS), stuff, tmp_path)
    both, _, _ = run(spec_of(LABELS, SOFT.model_copy(update={"weight": 0.0})), stuff, tmp_path)
    assert_same_bits(alone, both)


def test_weights_of_terms_scale_their_share(tmp_path: Path) -> None:
    stuff = material(*taught(16))
    spec = {"epochs": 1, "learning_rate": 1e-9, "schedule": "constant"}
    (one,), (two,), (mixed,) = (
        run(spec_of(*terms, **spec), stuff, tmp_path)[2]
        for terms in (
            (SOFT,),
            (LABELS,),
            (SOFT.model_copy(update={"weight": 0.7}), LABELS.model_copy(update={"weight": 3.0})),
        )
    )
    assert mixed[1] == pytest.approx(0.7 * one[1] + 3 * two[1], abs=3e-6)


def test_parameters_of_a_term_override_the_defaults_of_its_loss(tmp_path: Path) -> None:
    stuff = material(*taught(16))
    spec = {"epochs": 1, "learning_rate": 1e-9, "schedule": "constant"}
    of = {
        temperature: run(spec_of(LossTerm(loss="soft_kl", params=params), **spec), stuff, tmp_path)[2][0][1]
        for temperature, params in ((None, {}), (2.0, {"temperature": 2.0}), (5.0, {"temperature": 5.0}))
    }
    assert of[None] == of[2.0]
    assert of[2.0] != of[5.0]


def test_labels_are_not_read_by_a_stage_that_does_not_ask_for_them(tmp_path: Path) -> None:
    sequences, recorded = taught(60)
    without = material(sequences, recorded, torch.full((60,), -1))
    one, _, _ = run(spec_of(SOFT, POOLED), material(sequences, recorded), tmp_path)
    two, _, _ = run(spec_of(SOFT, POOLED), without, tmp_path)
    assert_same_bits(one, two)


def test_rows_without_labels_do_not_stop_a_stage_on_labels(tmp_path: Path) -> None:
    sequences, recorded = taught(60)
    labels = recorded.logits.argmax(-1)
    labels[::2] = -1
    _, _, curve = run(spec_of(LABELS, epochs=20), material(sequences, recorded, labels), tmp_path)
    assert curve[-1][1] < curve[0][1]


def test_the_teacher_is_left_as_it_was(tmp_path: Path) -> None:
    stuff = material(*taught(60))
    before = Outputs(stuff.teacher.logits.clone(), stuff.teacher.pooled.clone())
    run(spec_of(SOFT, POOLED, mask_rate=0.3), stuff, tmp_path)
    assert torch.equal(stuff.teacher.logits, before.logits)
    assert torch.equal(stuff.teacher.pooled, before.pooled)
    assert stuff.teacher.logits.grad is None
    assert not stuff.teacher.pooled.requires_grad


def test_the_projector_learns_but_is_no_part_of_the_student(tmp_path: Path) -> None:
    stuff = material(*taught(60))
    torch.manual_seed(0)
    build(bert.TINY)
    before = nn.Linear(bert.TINY.width, 24).weight.detach().clone()  # as `run` draws it
    student, projector, _ = run(spec_of(SOFT, POOLED), stuff, tmp_path)
    assert set(student.state_dict()) == {tensor.name for tensor in bert.tensors(bert.TINY)}
    assert not torch.equal(projector.weight, before)
    _, unused, _ = run(spec_of(SOFT), stuff, tmp_path)
    assert torch.equal(unused.weight, before)


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
