"""What every exporter asks of a file before it lets it go: it computes the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgedistill.errors import EdgedistillError, VerificationError
from edgedistill.exporters import Runner
from edgedistill.quant.frozen import FrozenStudent

T = TypeVar("T")
Feeds = Mapping[str, NDArray[Any]]
Explain = Callable[[Feeds], str | None]
"""Which layer of a file first differs from the student's for some inputs, in words; None: none does."""


class Limits(NamedTuple):
    """How far a file's first output may be from the student's, as fractions of the largest output."""

    median: float
    worst: float


STEP = 1.001
"""How far a static file's may be, in steps of the output's grid: one, and what float32 makes of it."""


def step_of(frozen: FrozenStudent) -> float | None:
    """The step of the output's grid; None where the student's head has none."""
    head = next((tensor.name.removesuffix(".weight") for tensor in frozen.tensors if tensor.kind == "head"), "")
    return frozen.ranges[head][1].scale if head in frozen.ranges else None


def executes(
    frozen: FrozenStudent,
    runner: Runner,
    limits: Limits,
    activations: Literal["as_trained", "float"] | torch.nn.Module = "as_trained",
    samples: int = 8,
    explain: Explain | None = None,
) -> None:
    """Run each signature on random inputs and compare its first output with the student computed in torch.

    That of a static student may be `STEP` away whatever `limits` say. `activations` is as of `FrozenStudent.to_module`,
    or the module that this has made.

    Raises:
        VerificationError: if the file computes something else; with `explain` it names the first layer that does.
    """
    random = np.random.default_rng(0)
    module = frozen.to_module(activations) if isinstance(activations, str) else activations
    for signature in runner.signatures.values():
        errors, largest, given = [], 0.0, []
        for _ in range(samples):
            feeds = frozen.sample(signature, random)
            given.append(feeds)
            expected = answer(module, feeds)
            found = runner.run(signature.name, feeds)[signature.outputs[0].name]
            errors.append(float(np.abs(found - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
        step = step_of(frozen)
        median, worst = (limits.median * largest, limits.worst * largest) if step is None else (STEP * step,) * 2
        if not (np.median(errors) <= median and max(errors) <= worst):
            raise VerificationError(
                f"Signature {signature.name} answers up to {max(errors):.3g} away from the student on random inputs "
                f"(largest output {largest:.3g}): the runtime does not compute what was trained."
                + where(explain, [given[n] for n in np.argsort(errors)[::-1]])
            )


def where(explain: Callable[[T], str | None] | None, tried: Sequence[T]) -> str:
    """A sentence that names the first layer that differs, of the first inputs for which one does; empty: none does.

    The file was found to be wrong, and may have a graph in which no layer is where a layer of ours should be: that must
    not hide what was found.
    """
    if explain is None:
        return ""
    for feeds in tried:
        try:
            told = explain(feeds)
        except (EdgedistillError, LookupError, ValueError, RuntimeError) as error:
            return f" Which layer differs first cannot be told: {str(error) or type(error).__name__}"
        if told is not None:
            return f" It first differs at {told}."
    return ""


def answer(module: torch.nn.Module, feeds: Feeds) -> NDArray[np.float32]:
    """The module's logits for the inputs of a signature, in the signature's order."""
    with torch.no_grad():
        out: NDArray[np.float32] = module(*(torch.from_numpy(feeds[name]) for name in feeds)).logits.numpy()
    return out
