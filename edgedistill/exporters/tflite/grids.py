"""Static int8: make a converted graph quantize exactly where the student does, and take and give floats at its ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgedistill.errors import StageError
from edgedistill.exporters.tflite.editing import Edit
from edgedistill.exporters.tflite.weights import LAYERS
from edgedistill.quant.activations import Range, bias_codes
from edgedistill.quant.frozen import FrozenStudent


def float_ends(edit: Edit) -> None:
    """A static graph starts and ends in int8: let every file take float pixels and answer float32 logits."""
    for subgraph, signature in zip(edit.model.subgraphs, edit.signatures(), strict=True):
        for place, index in enumerate(subgraph.inputs):
            new = _float_twin(edit, subgraph, int(index))
            if new is not None:
                subgraph.operators.insert(0, edit.operator("QUANTIZE", 1, [new], [int(index)]))
                subgraph.inputs[place] = new
                _rename(signature.inputs, int(index), new)
        for place, index in enumerate(subgraph.outputs):
            new = _float_twin(edit, subgraph, int(index))
            if new is not None:
                subgraph.operators.append(edit.operator("DEQUANTIZE", 2, [int(index)], [new]))
                subgraph.outputs[place] = new
                _rename(signature.outputs, int(index), new)


def _float_twin(edit: Edit, subgraph: Any, index: int) -> int | None:
    """A float tensor of the shape of an int8 one; None where it is float already."""
    tensor = subgraph.tensors[index]
    if tensor.type != edit.schema.TensorType.INT8:
        return None
    return edit.add_tensor(subgraph, tensor.shape, edit.schema.TensorType.FLOAT32)


def _rename(entries: list[Any], old: int, new: int) -> None:
    for entry in entries:
        entry.tensorIndex = new if entry.tensorIndex == old else entry.tensorIndex


def restore_ranges(edit: Edit, frozen: FrozenStudent) -> None:
    """Give each linear layer an input on its own grid, and each layer the student's bias, where the converter did not.

    Of two quantizations in a row, that of a pool and that of the layer behind it, the converter keeps the first. Back
    through float rather than by an int8 to int8 QUANTIZE, which XNNPACK computes with 8 bits of fraction only.
    """
    codes = {edit.builtin(name) for name in LAYERS}
    for subgraph in edit.model.subgraphs:
        operators: list[Any] = []
        for operator in subgraph.operators:
            name = edit.owned.get(subgraph.tensors[operator.inputs[1]].buffer) if edit.code(operator) in codes else None
            if name is not None:
                ranges = frozen.ranges.get(name.removesuffix(".weight"))
                if ranges is not None and edit.grid(subgraph.tensors[operator.inputs[0]]) not in (None, ranges[0]):
                    operators += _move(edit, subgraph, operator, ranges[0])
                _set_bias(edit, subgraph, operator, frozen, name)
            operators.append(operator)
        subgraph.operators = operators


def _move(edit: Edit, subgraph: Any, operator: Any, grid: Range) -> list[Any]:
    """Operators that bring the first input of a layer to its grid."""
    types, index = edit.schema.TensorType, int(operator.inputs[0])
    shape = subgraph.tensors[index].shape
    quantization = edit.schema.QuantizationParametersT(
        scale=np.asarray([grid.scale], np.float32), zeroPoint=np.asarray([grid.zero_point], np.int64)
    )
    real = edit.add_tensor(subgraph, shape, types.FLOAT32)
    moved = edit.add_tensor(subgraph, shape, types.INT8, quantization=quantization)
    operator.inputs = np.asarray([moved, *operator.inputs[1:]], np.int32)
    return [edit.operator("DEQUANTIZE", 2, [index], [real]), edit.operator("QUANTIZE", 1, [real], [moved])]


def _set_bias(edit: Edit, subgraph: Any, operator: Any, frozen: FrozenStudent, name: str) -> None:
    """The bias as integers on the grid of the layer's sums.

    The converter rounds in float64, torch in float32: of codes of 2^16 and more a few come out different by one.

    Raises:
        StageError: if a bias does not fit.
    """
    source = edit.grid(subgraph.tensors[operator.inputs[0]])
    if source is None:
        return
    scales = frozen.quantized[name].scales
    values = frozen.floats.get(f"{name.removesuffix('weight')}bias", np.zeros(len(scales), np.float32))
    codes = bias_codes(torch.from_numpy(values.copy()), source[0], torch.from_numpy(scales.copy()))
    if float(codes.abs().max()) >= 2**31:
        raise StageError(
            f"{name.removesuffix('weight')}bias is more than 2^31 steps of its layer's sums, which are int32: the "
            "layer's inputs and weights are almost 0 beside it. Train longer, or choose float activations."
        )
    data = codes.to(torch.int32).numpy()
    if len(operator.inputs) > 2 and edit.bytes_of(subgraph.tensors[operator.inputs[2]]) == data.tobytes():
        return
    quantization = edit.schema.QuantizationParametersT(
        scale=np.float32(source[0]) * scales, zeroPoint=np.zeros(len(scales), np.int64)
    )
    int32 = edit.schema.TensorType.INT32
    new = edit.add_tensor(subgraph, [len(scales)], int32, edit.add_buffer(data), quantization)
    operator.inputs = np.asarray([*operator.inputs[:2], new], np.int32)
