"""What a model answered, by sample id: nothing is ever matched by position."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgedistill import record
from edgedistill.data.tensors import Outputs
from edgedistill.errors import StageError
from edgedistill.specs import Silent
from edgedistill.students import bert
from edgedistill.students.bert.module import BertClassifier, build
from edgedistill.tasks import text_classification as task


def student() -> BertClassifier:
    torch.manual_seed(0)
    return build(bert.TINY)


def sequences(rows: int = 37) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, bert.TINY.max_length + 1, (rows,), generator=generator).tolist()
    return [torch.randint(1, 120, (length,), generator=generator).tolist() for length in lengths]


def answers(model: BertClassifier, items: list[list[int]], batch_size: int = 64) -> Outputs:
    return record.answers(model, items, lambda batch: task.collate(batch, 0), Silent(), batch_size)


@pytest.mark.parametrize("batch_size", [1, 5, 37, 64])
def test_answers_are_in_the_order_of_the_input_whatever_the_lengths_and_the_batch_size(batch_size: int) -> None:
    model, items = student(), sequences()
    found = answers(model, items, batch_size)
    with torch.no_grad():
        for row, item in enumerate(items):
            alone = model(*task.collate([item], 0))
            torch.testing.assert_close(found.logits[row : row + 1], alone.logits, rtol=0, atol=1e-6)
            torch.testing.assert_close(found.pooled[row : row + 1], alone.pooled, rtol=0, atol=1e-6)
    assert float(found.logits.std(0).min()) > 1e-3, "rows must differ, or their order could not be seen"


def test_answers_are_made_in_eval_mode_without_gradients_and_leave_the_model_alone() -> None:
    model = student().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = answers(model, sequences())
    assert not model.training
    assert not found.logits.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_progress_counts_every_row() -> None:
    class Watch(Silent):
        rows = 0

        def advance(self, units: int = 1, **facts: float) -> None:
            self.rows += units

    watch = Watch()
    record.answers(student(), sequences(), lambda batch: task.collate(batch, 0), watch, 8)
    assert watch.rows == 37


def recorded() -> record.Recorded:
    return record.Recorded(("a", "b", "ü"), torch.arange(6.0).view(3, 2), torch.arange(12.0).view(3, 4))


def test_answers_are_found_by_id_in_any_order_and_more_than_once() -> None:
    found = recorded().of(["ü", "a", "ü"])
    assert found.logits.tolist() == [[4, 5], [0, 1], [4, 5]]
    assert found.pooled[:, 0].tolist() == [8, 0, 8]


def test_an_unknown_id_is_a_stage_error_that_counts_and_names_it() -> None:
    with pytest.raises(StageError, match=r"no answer for 2 rows, the first is c"):
        recorded().of(["a", "c", "d"])


def test_a_record_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    original = recorded()
    record.save(tmp_path, record.Recorded(original.ids, original.logits[:, [1, 0]], original.pooled.T[:3, :].T))
    loaded = record.load(tmp_path)
    assert loaded.ids == original.ids
    assert torch.equal(loaded.logits, original.logits[:, [1, 0]])
    assert torch.equal(loaded.pooled, original.pooled[:, :3])
