"""Parity by hand on small arrays; a file that is not the student never passes as one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgedistill.errors import VerificationError
from edgedistill.evaluate import code_difference, parity
from edgedistill.quant.frozen import FrozenStudent, QuantizedTensor, freeze
from edgedistill.specs import QuantScheme
from edgedistill.students import bert
from edgedistill.students.bert.module import build

NAME = "layers.0.up.weight"


def frozen() -> FrozenStudent:
    return freeze(build(bert.TINY), "bert", bert.TINY, QuantScheme(), {})


def stored_as(student: FrozenStudent, **changes: Any) -> dict[str, QuantizedTensor]:
    """The student's own tensors as a file holds them, with one tensor changed."""
    copies = {name: QuantizedTensor(t.codes.copy(), t.scales.copy()) for name, t in student.quantized.items()}
    copies[NAME] = copies[NAME]._replace(**changes)
    return copies


def test_a_file_that_holds_the_student_differs_by_nothing() -> None:
    student = frozen()
    assert code_difference(student, stored_as(student)) == (0, 0.0)


@pytest.mark.parametrize(("ours", "theirs"), [(5, 6), (5, 2), (-100, 100)])
def test_one_code_that_differs_is_found_with_its_size(ours: int, theirs: int) -> None:
    student = frozen()
    codes = student.quantized[NAME].codes.copy()
    student.quantized[NAME].codes[3, 2], codes[3, 2] = ours, theirs  # 200 apart would wrap around in int8 arithmetic
    assert code_difference(student, stored_as(student, codes=codes))[0] == abs(ours - theirs)


def test_one_scale_that_differs_is_found() -> None:
    student = frozen()
    scales = student.quantized[NAME].scales.copy()
    scales[-1] *= 1.5
    found = code_difference(student, stored_as(student, scales=scales))
    assert found == (0, pytest.approx(scales[-1] / 3, rel=1e-5))


def test_extra_tensors_of_the_file_do_not_matter() -> None:
    student = frozen()
    extra = stored_as(student) | {"other": QuantizedTensor(np.ones((2, 2), np.int8), np.ones(2, np.float32))}
    assert code_difference(student, extra) == (0, 0.0)


def test_a_tensor_missing_in_the_file_is_named() -> None:
    student = frozen()
    stored = stored_as(student)
    del stored[NAME]
    with pytest.raises(VerificationError, match=rf"stores nothing for '{NAME}', expected \(32, 16\)"):
        code_difference(student, stored)


def test_a_tensor_of_another_shape_is_named() -> None:
    student = frozen()
    with pytest.raises(VerificationError, match=rf"stores \(16, 32\) for '{NAME}', expected \(32, 16\)"):
        code_difference(student, stored_as(student, codes=student.quantized[NAME].codes.T))


@pytest.mark.parametrize("scales", [np.ones(1, np.float32), np.ones(31, np.float32)])
def test_one_scale_for_all_channels_is_not_a_scale_for_each(scales: Any) -> None:
    with pytest.raises(VerificationError, match=NAME):
        code_difference(frozen(), stored_as(frozen(), scales=scales))


def test_a_scale_that_is_not_a_number_does_not_count_as_equal() -> None:
    student = frozen()
    scales = student.quantized[NAME].scales.copy()
    scales[0] = np.nan
    with pytest.raises(VerificationError, match=rf"{NAME}.*not finite"):
        code_difference(student, stored_as(student, scales=scales))


def test_parity_figures_are_those_computed_by_hand() -> None:
    reference = np.array([[0.0, 0.0], [math.log(3), 0.0], [0.0, 5.0]], np.float32)
    file = np.array([[0.0, 0.0], [0.0, math.log(3)], [0.25, 5.0]], np.float32)
    found = parity(reference, file, [0, 0, 1], 9, (2, 0.5))
    # the middle row is (3/4, 1/4) against (1/4, 3/4): KL = 1/2 · ln 3
    last = sum(
        p * math.log(p / q)
        for p, q in zip(
            (1 / (1 + math.exp(5)), 1 / (1 + math.exp(-5))),
            (1 / (1 + math.exp(4.75)), 1 / (1 + math.exp(-4.75))),
            strict=True,
        )
    )
    assert found.mean_kl == pytest.approx((0.5 * math.log(3) + last) / 3, rel=1e-5)
    assert found.logits_max_abs == pytest.approx(math.log(3))
    assert found.logits_reference_max_abs == 5.0
    assert (found.rows, found.tensors, found.codes_max_difference, found.scales_max_difference) == (3, 9, 2, 0.5)
    assert found.argmax_agreement == pytest.approx(2 / 3)
    assert found.accuracy_reference == 1.0
    assert found.accuracy_file == pytest.approx(2 / 3)


def test_the_divergence_is_from_the_student_to_the_file_and_not_the_other_way() -> None:
    sure, unsure = np.array([[8.0, 0.0]], np.float32), np.array([[0.0, 0.0]], np.float32)
    one, other = (parity(*pair, [0], 1, (0, 0.0)).mean_kl for pair in ((sure, unsure), (unsure, sure)))
    assert one == pytest.approx(math.log(2), abs=5e-3)
    assert other > 3


def test_equal_logits_have_parity_without_a_trace_of_a_difference() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    found = parity(logits, logits.copy(), [0] * 50, 1, (0, 0.0))
    assert (found.logits_max_abs, found.mean_kl, found.argmax_agreement) == (0.0, 0.0, 1.0)
    assert found.accuracy_file == found.accuracy_reference


def test_a_constant_added_to_the_logits_of_a_row_is_seen_in_the_logits_and_not_in_the_divergence() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    found = parity(logits, logits + 1, [0] * 5, 1, (0, 0.0))
    assert found.logits_max_abs == pytest.approx(1)
    assert found.mean_kl == pytest.approx(0, abs=1e-6)


def test_very_loud_logits_do_not_overflow() -> None:
    loud = np.array([[1e4, 0.0, -1e4]], np.float32)
    found = parity(loud, loud / 2, [0], 1, (0, 0.0))
    assert found.mean_kl == pytest.approx(0, abs=1e-9)
    assert math.isfinite(found.logits_max_abs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_file_that_answers_what_is_not_a_number_fails_verification(bad: float) -> None:
    reference = np.zeros((3, 2), np.float32)
    file = reference.copy()
    file[1, 0] = bad
    with pytest.raises(VerificationError, match=r"1 of 3 rows.*not finite"):
        parity(reference, file, [0, 0, 0], 1, (0, 0.0))
