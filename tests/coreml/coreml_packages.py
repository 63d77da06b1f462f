"""Packages changed from outside: where things are in one, and what becomes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.coreml import Evaluator, load
from edgedistill.coreml.proto import messages
from edgedistill.errors import VerificationError

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")


WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")


FEEDS = {"x": np.random.default_rng(0).uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32)}


def edited(package: Path, change: Callable[[Any], None]) -> Path:
    spec = messages().Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    change(spec)
    (package / MODEL).write_bytes(spec.SerializeToString())
    return package


def block(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def stored(spec: Any) -> Any:
    """The first constant in the weight file."""
    return next(
        op.attributes["val"]
        for op in block(spec).operations
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue"
    )


def operation(spec: Any, kind: str) -> Any:
    return next(op for op in block(spec).operations if op.type == kind)


def constant(spec: Any, name: str) -> Any:
    return next(op for op in block(spec).operations if op.outputs and op.outputs[0].name == name).attributes["val"]


def answer(package: Path, precision: Any = "fp32") -> np.ndarray:
    return Evaluator(load(package), precision).predict(FEEDS)["y"]


def refused(package: Path, match: str) -> None:
    with pytest.raises(VerificationError, match=match):
        answer(package)


def refused_unread(package: Path, match: str) -> None:
    """Refused when the package is opened, before any weight is read."""
    with pytest.raises(VerificationError, match=match):
        load(package)
