"""One stage of distillation on a toy task: what the student learns, from what, and to which bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy_stage import LABELS, PAD, POOLED, SOFT, agreement, assert_same_bits, material, run, spec_of, taught

from edgedistill import quant, training
from edgedistill.data.tensors import Outputs
from edgedistill.record import Recorded
from edgedistill.specs import LossTerm, QuantScheme
from edgedistill.students import bert
from edgedistill.students.bert.module import BertClassifier, build
from edgedistill.tasks import text_classification as task


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
