"""States, which live from one prediction to the next, and the answer of a classifier."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from edgedistill.coreml.values import Arguments, Result, Value
from edgedistill.errors import VerificationError


def _read_state(a: Arguments) -> Result:
    return a.cell("input").value


def _write_state(a: Arguments) -> Result:
    a.cell("input").write(a["data"])
    return None


def _update_state(a: Arguments) -> Result:
    cell = a.cell("state")
    cell.write(a["value"])
    return cell.value


def _classify(a: Arguments) -> Result:
    """The label of the highest probability, and the probabilities in the order of the labels."""
    probabilities, best = a["probabilities"].reshape(-1), int(a["probabilities"].argmax())
    labels = a.texts("classes") if a.is_text("classes") else a["classes"]
    if len(labels) != probabilities.numel():
        raise VerificationError(f"{len(labels)} labels for {probabilities.numel()} probabilities")
    label: Value = labels[best] if isinstance(labels, Tensor) else (labels[best],)
    return [label, probabilities]


KERNELS: dict[str, Callable[[Arguments], Result]] = {
    "classify": _classify,
    "coreml_update_state": _update_state,
    "read_state": _read_state,
    "write_state": _write_state,
}
