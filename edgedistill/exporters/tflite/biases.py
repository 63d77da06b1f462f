"""Give back to a linear layer the bias that the converter added into a table behind it.

`(x @ W + b) + table` comes out of the converter as `x @ W + (b + table)`: the sum of the two constants is rounded, and
neither of them is in the file any more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.exporters.tflite.editing import Edit
from edgedistill.quant.frozen import FrozenStudent


def separate_biases(edit: Edit, frozen: FrozenStudent) -> None:
    """Undo it where a layer without bias is followed by the sum of its bias and a table of the student."""
    for subgraph in edit.model.subgraphs:
        adds = [o for o in subgraph.operators if edit.code(o) == edit.builtin("ADD")]
        for operator in subgraph.operators:
            bias = _missing_bias(edit, frozen, subgraph, operator)
            if bias is None:
                continue
            for add in adds:
                found = _table(edit, frozen, subgraph, add, int(operator.outputs[0]), bias)
                if found is not None:
                    constant, table = found
                    subgraph.tensors[constant].buffer = edit.add_buffer(table)
                    float32 = edit.schema.TensorType.FLOAT32
                    new = edit.add_tensor(subgraph, bias.shape, float32, edit.add_buffer(bias))
                    operator.inputs = np.asarray([*operator.inputs[:2], new], np.int32)


def _missing_bias(edit: Edit, frozen: FrozenStudent, subgraph: Any, operator: Any) -> NDArray[np.float32] | None:
    """The student's bias for a linear layer that came out without one."""
    if edit.code(operator) != edit.builtin("FULLY_CONNECTED") or any(index >= 0 for index in operator.inputs[2:]):
        return None
    weight = operator.inputs[1]
    for other in subgraph.operators:
        if edit.code(other) == edit.builtin("DEQUANTIZE") and other.outputs[0] == weight:
            weight = other.inputs[0]
    name = edit.owned.get(subgraph.tensors[weight].buffer)
    return None if name is None else frozen.floats.get(f"{name.removesuffix('weight')}bias")


def _table(
    edit: Edit, frozen: FrozenStudent, subgraph: Any, add: Any, layer: int, bias: NDArray[np.float32]
) -> tuple[int, NDArray[np.float32]] | None:
    """The constant that `add` adds to the layer, and the table of the student that it holds beside the bias."""
    others = [int(index) for index in add.inputs if int(index) != layer]
    if layer not in add.inputs or len(others) != 1:
        return None
    data = edit.bytes_of(subgraph.tensors[others[0]])
    for table in frozen.floats.values():
        if table.ndim == 2 and table.shape[1:] == bias.shape and (table + bias).tobytes() == data:
            return others[0], table
    return None
