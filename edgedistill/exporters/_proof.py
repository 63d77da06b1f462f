"""What every exporter asks of a file before it lets it go: it computes the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgedistill.errors import VerificationError
from edgedistill.exporters import Runner
from edgedistill.quant.frozen import FrozenStudent


class Limits(NamedTuple):
    """How far a file's first output may be from the student's, as fractions of the largest output."""

    median: float
    worst: float


def executes(
    frozen: FrozenStudent,
    runner: Runner,
    limits: Limits,
    activations: Literal["as_trained", "float"] = "as_trained",
    samples: int = 8,
) -> None:
    """Run each signature on random inputs and compare its first output with the student computed in torch.

    Raises:
        VerificationError: if the file computes something else.
    """
    random = np.random.default_rng(0)
    module = frozen.to_module(activations)
    for signature in runner.signatures.values():
        errors, largest = [], 0.0
        for _ in range(samples):
            feeds = frozen.sample(signature, random)
            expected = answer(module, feeds)
            found = runner.run(signature.name, feeds)[signature.outputs[0].name]
            errors.append(float(np.abs(found - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
        if not (np.median(errors) <= limits.median * largest and max(errors) <= limits.worst * largest):
            raise VerificationError(
                f"Signature {signature.name} answers up to {max(errors):.3g} away from the student on random inputs "
                f"(largest output {largest:.3g}): the runtime does not compute what was trained."
            )


def answer(module: torch.nn.Module, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The module's logits for the inputs of a signature, in the signature's order."""
    with torch.no_grad():
        out: NDArray[np.float32] = module(*(torch.from_numpy(feeds[name]) for name in feeds)).logits.numpy()
    return out
