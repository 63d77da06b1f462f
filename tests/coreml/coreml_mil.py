"""MIL programs of one operation, and whether they give its closed form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coreml_models import built

from edgedistill.coreml import Evaluator, load

RNG = np.random.default_rng(11)
X = RNG.uniform(-2, 2, (2, 6, 5)).astype(np.float32)
IMAGE = RNG.uniform(-2, 2, (2, 8, 6, 4)).astype(np.float32)
ROWS = RNG.uniform(-2, 2, (4, 3)).astype(np.float32)
UPDATES = RNG.uniform(0.5, 2, (2, 3)).astype(np.float32)
WHOLE = RNG.integers(-9, 9, (3, 4)).astype(np.int32)

# name: what the program computes of its inputs, and the same in numpy or torch
Case = tuple[Callable[[Any, Any], Any], Callable[[], Any]]


def t(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


INPUTS = {"x": X, "image": IMAGE, "rows": ROWS, "whole": WHOLE}


def assert_closed_form(case: Case, folder: Path) -> None:
    make, closed = case
    program = load(built(make, INPUTS, folder / "mil.mlpackage"))
    wanted = np.asarray(closed())
    for precision, tolerance in (("fp32", 3e-6), ("fp64", 1e-6)):
        (got,) = Evaluator(program, precision).predict(INPUTS).values()
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())
