"""Keep images channels last: move a TRANSPOSE that the converter left before a PAD or a MEAN into their arguments.

A torch network has its channels first. The converter turns the convolutions around and cancels most of what that
costs, but not across a padding that is an operator of its own, or into the mean over an image: two copies of a whole
activation for each, several times the work of the padding itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgedistill.exporters.tflite.editing import Edit


def keep_channels_last(edit: Edit) -> None:
    """Rewrite TRANSPOSE, PAD, TRANSPOSE back to PAD, and TRANSPOSE, MEAN to MEAN, in every signature."""
    for subgraph in edit.model.subgraphs:
        users: dict[int, list[Any]] = {}
        for operator in subgraph.operators:
            for index in operator.inputs:
                users.setdefault(int(index), []).append(operator)
        for index in subgraph.outputs:  # an output must stay: count it as a user that is no operator
            users.setdefault(int(index), []).append(None)
        gone: list[Any] = []
        for operator in subgraph.operators:
            if edit.code(operator) == edit.builtin("TRANSPOSE"):
                gone += _absorbed(edit, subgraph, operator, users)
        subgraph.operators = [o for o in subgraph.operators if not any(o is other for other in gone)]


def _absorbed(edit: Edit, subgraph: Any, turn: Any, users: dict[int, list[Any]]) -> list[Any]:
    """The operators that are no longer needed once the one behind `turn` works on what `turn` was given."""
    order = _integers(edit, subgraph, int(turn.inputs[1]))
    behind = _only_user(users, turn)
    if order is None or behind is None or len(behind.inputs) != 2 or behind.inputs[0] != turn.outputs[0]:
        return []
    values = _integers(edit, subgraph, int(behind.inputs[1]))
    if values is None:
        return []
    if edit.code(behind) == edit.builtin("MEAN") and not behind.builtinOptions.keepDims:
        kept = [axis for n, axis in enumerate(order) if n not in set(values)]
        if kept != sorted(kept):
            return []
        _take(edit, subgraph, behind, turn, sorted(order[axis] for axis in values))
        return [turn]
    back = _only_user(users, behind)
    if edit.code(behind) == edit.builtin("PAD") and back is not None and edit.code(back) == edit.builtin("TRANSPOSE"):
        if _integers(edit, subgraph, int(back.inputs[1])) != np.argsort(order).tolist():
            return []
        rows = np.asarray(values).reshape(-1, 2)[np.argsort(order)]
        _take(edit, subgraph, behind, turn, rows)
        behind.outputs = back.outputs
        return [turn, back]
    return []


def _take(edit: Edit, subgraph: Any, operator: Any, turn: Any, values: Any) -> None:
    """Let the operator read what `turn` read, with these integers as its second input."""
    numbers = np.asarray(values, np.int32)
    constant = edit.add_tensor(subgraph, numbers.shape, edit.schema.TensorType.INT32, edit.add_buffer(numbers))
    operator.inputs = np.asarray([turn.inputs[0], constant], np.int32)


def _only_user(users: dict[int, list[Any]], operator: Any) -> Any | None:
    found = users.get(int(operator.outputs[0]), [])
    return found[0] if len(found) == 1 else None


def _integers(edit: Edit, subgraph: Any, index: int) -> Sequence[int] | None:
    """A constant of int32, flat; None if it is something else."""
    tensor = subgraph.tensors[index]
    if tensor.type != edit.schema.TensorType.INT32 or not edit.bytes_of(tensor):
        return None
    return [int(value) for value in np.frombuffer(edit.bytes_of(tensor), "<i4")]
