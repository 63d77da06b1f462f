"""What every file of the losses folder promises; a new loss is tested by being there."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, log_softmax

from edgedistill import catalog
from edgedistill.losses import LossBatch

LOSSES = catalog.plugins("losses")
FIELDS = {"logits": ("teacher_logits",), "pooled": ("teacher_pooled", "student_pooled"), "labels": ("labels",)}


def batch_of(rows: int = 6, classes: int = 5, width: int = 7) -> LossBatch:
    generator = torch.Generator().manual_seed(3)

    def draw(columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, classes, (rows,), generator=generator)
    return LossBatch(draw(classes), 3 * draw(classes), draw(width), draw(width), labels)


def value_of(name: str, batch: LossBatch) -> Tensor:
    plugin = catalog.load_plugin("losses", name)
    found: Tensor = plugin.loss(batch, **plugin.PARAMS)
    return found


def needs_of(name: str) -> tuple[str, ...]:
    needs: tuple[str, ...] = catalog.constants("losses", name)["NEEDS"]
    return needs


def learnable(batch: LossBatch) -> LossBatch:
    return replace(
        batch,
        student_logits=batch.student_logits.clone().requires_grad_(),
        student_pooled=batch.student_pooled.clone().requires_grad_(),
    )


def stepped(name: str, batch: LossBatch, rate: float) -> LossBatch:
    batch = learnable(batch)
    value_of(name, batch).backward()

    def moved(value: Tensor) -> Tensor:
        return value.detach() - (0 if value.grad is None else rate * value.grad)

    return replace(batch, student_logits=moved(batch.student_logits), student_pooled=moved(batch.student_pooled))


@pytest.mark.parametrize("name", LOSSES)
def test_constants_are_literals_that_a_plan_can_read_without_importing_the_loss(name: str) -> None:
    found, plugin = catalog.constants("losses", name), catalog.load_plugin("losses", name)
    for constant in ("PARAMS", "LIMITS", "NEEDS", "ZERO_AT_TEACHER"):
        assert found[constant] == getattr(plugin, constant)
    assert set(found["NEEDS"]) <= set(FIELDS)
    assert found["NEEDS"]
    assert isinstance(found["ZERO_AT_TEACHER"], bool)
    assert list(inspect.signature(plugin.loss).parameters) == ["batch", *found["PARAMS"]]
    assert all(low <= found["PARAMS"][key] <= high for key, (low, high) in found["LIMITS"].items())
    assert set(found["LIMITS"]) == set(found["PARAMS"])


@pytest.mark.parametrize("name", LOSSES)
def test_the_value_is_one_finite_number_that_is_not_negative(name: str) -> None:
    value = value_of(name, batch_of())
    assert value.shape == ()
    assert torch.isfinite(value)
    assert value > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_that_answers_as_the_teacher_has_no_loss_and_no_gradient_where_that_is_promised(name: str) -> None:
    batch = batch_of()
    same = learnable(replace(batch, student_logits=batch.teacher_logits, student_pooled=batch.teacher_pooled))
    value = value_of(name, same)
    value.backward()
    largest = max(
        float(item.grad.abs().max()) for item in (same.student_logits, same.student_pooled) if item.grad is not None
    )
    promised = catalog.constants("losses", name)["ZERO_AT_TEACHER"]
    assert (abs(value.item()) < 1e-12 and largest < 1e-12) == promised


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_a_mean_so_doubling_the_batch_changes_nothing(name: str) -> None:
    batch = batch_of()
    doubled = LossBatch(**{key: torch.cat([value, value]) for key, value in vars(batch).items()})
    torch.testing.assert_close(value_of(name, doubled), value_of(name, batch), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    batch, order = batch_of(), torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = LossBatch(**{key: value[order] for key, value in vars(batch).items()})
    torch.testing.assert_close(value_of(name, shuffled), value_of(name, batch), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_one_of_finite_differences(name: str) -> None:
    batch = batch_of(rows=3)

    def of(logits: Tensor, pooled: Tensor) -> Tensor:
        return value_of(name, replace(batch, student_logits=logits, student_pooled=pooled))

    inputs = learnable(batch)
    assert torch.autograd.gradcheck(of, (inputs.student_logits, inputs.student_pooled))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_finite_for_silent_and_for_loud_logits_in_float32(name: str, scale: float) -> None:
    loud = {
        key: (scale * value).float() if value.is_floating_point() else value for key, value in vars(batch_of()).items()
    }
    batch = learnable(LossBatch(**loud))
    value_of(name, batch).backward()
    grads = [item.grad for item in (batch.student_logits, batch.student_pooled) if item.grad is not None]
    assert grads
    assert all(bool(grad.isfinite().all()) for grad in grads)


@pytest.mark.parametrize("name", LOSSES)
def test_one_gradient_step_moves_toward_what_the_loss_asks_for(name: str) -> None:
    batch = batch_of()
    # a student that knows nothing yet: every target is then ahead of it
    start = replace(batch, student_logits=0.01 * batch.student_logits)
    after = stepped(name, start, rate=0.1)
    assert value_of(name, after) < value_of(name, start)
    needs = needs_of(name)
    if "logits" in needs:
        assert kl_to_teacher(after) < kl_to_teacher(start)
    if "pooled" in needs:
        assert angle_to_teacher(after) > angle_to_teacher(start)
    if "labels" in needs:
        assert probability_of_labels(after) > probability_of_labels(start)


@pytest.mark.parametrize("name", LOSSES)
def test_only_what_the_loss_declares_as_needed_is_read(name: str) -> None:
    batch = batch_of()
    spoiled = {}
    for need, fields in FIELDS.items():
        if need not in needs_of(name):
            for field in fields:
                value = getattr(batch, field)
                spoiled[field] = torch.full_like(value, float("nan") if value.is_floating_point() else 10**6)
    assert spoiled
    assert torch.equal(value_of(name, replace(batch, **spoiled)), value_of(name, batch))


@pytest.mark.parametrize("name", [name for name in LOSSES if "labels" not in needs_of(name)])
def test_rows_without_a_label_teach_as_much_as_rows_with_one(name: str) -> None:
    batch = batch_of()
    unlabelled = replace(batch, labels=torch.full_like(batch.labels, -1))
    assert torch.equal(value_of(name, unlabelled), value_of(name, batch))


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_flows_back_into_the_teacher_tensors_or_changes_them(name: str) -> None:
    batch = batch_of()
    before = {key: value.clone() for key, value in vars(batch).items()}
    value_of(name, learnable(batch)).backward()
    assert all(torch.equal(getattr(batch, key), value) for key, value in before.items())
    assert batch.teacher_logits.grad is None
    assert batch.teacher_pooled.grad is None


def kl_to_teacher(batch: LossBatch) -> Tensor:
    log_q, log_p = log_softmax(batch.teacher_logits, -1), log_softmax(batch.student_logits, -1)
    return (log_q.exp() * (log_q - log_p)).sum(-1).mean()


def angle_to_teacher(batch: LossBatch) -> Tensor:
    return cosine_similarity(batch.student_pooled, batch.teacher_pooled).mean()


def probability_of_labels(batch: LossBatch) -> Tensor:
    return log_softmax(batch.student_logits, -1).gather(1, batch.labels[:, None]).mean()
