"""Sizes of students that no part of a graph was measured with: shapes drawn at random, and exported for real.

The files are written by the exporters' own steps, without the proofs that an export ends with, as `bench/size.py` does.
Slow ones of Core ML in a process of their own: torch names what it traces by variables of the code that runs, of which
the checks of shapes in tests are some, and in a package of 25 kB such names are 1 % (`obj_3` in place of `input_3`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from edgedistill import catalog
from edgedistill.plan.size import file_size
from edgedistill.specs import QuantScheme
from edgedistill.students import bert

sys.path.append(str(Path(__file__).parents[2] / "bench"))
from _size_exports import Case, exported_bytes
from _size_held_out import drawn, of_middle_size

# A decoder takes 15 s in TFLite, all the others of the first round about 40 s together.
DRAWN = [
    pytest.param(
        case,
        id=f"{case.family}-{case.format}-{number}",
        marks=[pytest.mark.slow] if number or (case.family, case.format) == ("llama", "tflite") else [],
    )
    for number, case in drawn(6)
]
MIDDLE = [pytest.param(case, id=f"{case.family}-{case.format}-{label}") for label, case in of_middle_size()]


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """A process without the checks of tests; it starts when it is first used."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("case", DRAWN)
def test_a_student_of_any_shape_is_predicted_within_one_percent(
    case: Any, apart: ProcessPoolExecutor, request: pytest.FixtureRequest
) -> None:
    slow = request.node.get_closest_marker("slow") is not None
    compare(case, apart if slow and case.format == "coreml" else None)


def test_a_package_of_one_length_holds_the_positions_that_it_reads() -> None:
    config = bert.TINY.model_copy(update={"max_length": 100})
    compare(Case("coreml", "bert", config, QuantScheme(), (8,)))


@pytest.mark.slow
@pytest.mark.parametrize("case", MIDDLE)
def test_a_student_of_middle_size_is_predicted_within_one_percent(case: Any, apart: ProcessPoolExecutor) -> None:
    compare(case, apart if case.format == "coreml" else None)


def compare(case: Case, apart: ProcessPoolExecutor | None = None) -> None:
    tensors = catalog.load_plugin("students", case.family).tensors(case.config)
    found = file_size(case.format, tensors, case.scheme, case.buckets, case.config, tokenizer_bytes=0)
    told = f"{case}: a graph that changed is measured anew by: python bench/size.py --fit {case.format}"
    exported = apart.submit(exported_bytes, case).result() if apart else exported_bytes(case)
    assert found.total_mb * 1e6 == pytest.approx(exported, rel=0.01), told
