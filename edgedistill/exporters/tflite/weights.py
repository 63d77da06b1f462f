"""Put a student's codes where the converter left their carriers: packed, in groups, or behind a DEQUANTIZE.

Three forms, by the kind of activations. Where they are int8, the weight is an integer constant of its layer. Where they
are float, the layer takes the output of a DEQUANTIZE of that constant; without it LiteRT would quantize the layer's
input at run time. The rows of an embedding are dequantized by the lookup itself, always.

XNNPACK multiplies int8 activations with int4 matrices, but not with int4 kernels: LiteRT's own convolution takes these,
rounds every sum twice (a tenth of its codes come out one step off) and unpacks the kernel in every run. So a static
int4 kernel of one pixel is a FULLY_CONNECTED on every pixel, and the few codes of any other are stored as int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import StageError
from edgedistill.exporters.tflite.carriers import CHANNEL_AXIS, POINTWISE, Carrier, stored_as
from edgedistill.exporters.tflite.editing import Edit
from edgedistill.exporters.tflite.opening import close, opens
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.stored import QuantizedTensor
from edgedistill.specs.quant import PerGroup, WeightGrid

# The version of each operator that takes int4 weights next to int8 activations, or float ones in the case of lookups.
LAYERS = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}
LOOKUP = "EMBEDDING_LOOKUP"
# The one that quantizes its input by itself; with a scale for each channel of its weight it has this version.
HYBRID, _HYBRID_VERSION = "FULLY_CONNECTED", 12


def place(edit: Edit, frozen: FrozenStudent, given: Mapping[str, Carrier]) -> dict[str, str]:
    """Replace every carrier, and every tensor that was opened; answers the layout of each weight not stored as ours."""
    found = close(edit, frozen) if opens(frozen) else [_carried(edit, subgraph, given) for subgraph in _graphs(edit)]
    grids, layouts, buffers = frozen.grids(), dict[str, str](), dict[str, int]()
    for subgraph, places in zip(_graphs(edit), found, strict=True):
        placed: dict[int, str] = {}
        for index, (name, layout) in places.items():
            tensor = subgraph.tensors[index]
            if name in frozen.floats:
                if name not in buffers:
                    buffers[name] = edit.add_buffer(frozen.floats[name])
                tensor.buffer = buffers[name]
                continue
            weight, grid = frozen.quantized[name], grids[name]
            if grid.bits == 4 and layout and frozen.scheme.activations == "static_int8":
                pointwise = weight.codes.shape[1] > 1 and weight.codes.shape[2:] == (1, 1)
                grid, layout = (grid, POINTWISE) if pointwise else (WeightGrid(), layout)
            if name not in buffers:
                codes = stored_as(weight.codes, layout)
                buffers[name] = edit.add_buffer(packed(codes) if grid.bits == 4 else codes)
                edit.owned[buffers[name]] = name
            tensor.buffer, tensor.shape = buffers[name], np.asarray(stored_as(weight.codes, layout).shape, np.int32)
            _describe(edit, subgraph, tensor, weight, grid, layout)
            placed[index] = name
            if layout:
                layouts[name] = layout
        _connect(edit, subgraph, placed, frozen)
    return layouts


def _graphs(edit: Edit) -> list[Any]:
    """The subgraphs, in the order of their signatures."""
    out: list[Any] = edit.model.subgraphs
    return out


def _carried(edit: Edit, subgraph: Any, given: Mapping[str, Carrier]) -> dict[int, tuple[str, str]]:
    """The tensors that hold carriers, by index: the weight that each is for, and its layout."""
    forms: dict[bytes, list[tuple[str, str, NDArray[np.int8]]]] = {}
    tables: dict[bytes, str] = {}
    for name, carrier in given.items():
        for layout, codes in carrier.stored().items():
            forms.setdefault(codes.tobytes(), []).append((name, layout, codes))
        if carrier.codes.ndim == 2:  # static mode leaves the tables of embeddings float
            tables[(carrier.codes * carrier.scales[:, None]).tobytes()] = name
    lookups = {int(o.inputs[1]) for o in subgraph.operators if edit.code(o) == edit.builtin(LOOKUP)}
    found: dict[int, tuple[str, str]] = {}
    for index, tensor in enumerate(subgraph.tensors):
        data = edit.bytes_of(tensor)
        if tensor.type == edit.schema.TensorType.INT8:
            # equal bytes in two layouts (a 1x1 kernel) are told apart by the shape
            same = [(name, layout) for name, layout, c in forms.get(data, []) if c.shape == tuple(tensor.shape)]
            found |= {index: same[0]} if same else {}
        elif tensor.type == edit.schema.TensorType.FLOAT32 and index in lookups and data in tables:
            found[index] = tables[data], ""
    return found


def packed(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes of 4 bits in a byte, the first in the low half."""
    flat = codes.reshape(-1).view(np.uint8) & 15
    pairs = np.pad(flat, (0, len(flat) % 2)).reshape(-1, 2)
    out: NDArray[np.uint8] = pairs[:, 0] | pairs[:, 1] << 4
    return out


def unpacked(data: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """The first `count` codes of `packed` bytes."""
    halves = np.stack([data << 4, data & 0xF0], axis=1).reshape(-1)[:count]
    return halves.view(np.int8) >> 4


def _describe(edit: Edit, subgraph: Any, tensor: Any, weight: QuantizedTensor, grid: WeightGrid, layout: str) -> None:
    """Type and scales. LiteRT reads the scales of groups from a float16 tensor, and rounds them to bfloat16."""
    schema = edit.schema
    tensor.type = schema.TensorType.INT4 if grid.bits == 4 else schema.TensorType.INT8
    if isinstance(grid.granularity, PerGroup):
        scales = edit.add_buffer(weight.scales.astype(np.float16))
        index = edit.add_tensor(subgraph, weight.scales.shape, schema.TensorType.FLOAT16, scales)
        tensor.quantization = schema.QuantizationParametersT(
            detailsType=schema.QuantizationDetails.BlockwiseQuantization,
            details=schema.BlockwiseQuantizationT(scales=index, zeroPoints=-1, blockSize=grid.granularity.size),
        )
        return
    tensor.quantization = schema.QuantizationParametersT(
        scale=weight.scales,
        zeroPoint=np.zeros(len(weight.scales), np.int64),
        quantizedDimension=CHANNEL_AXIS[layout],
    )


def _connect(edit: Edit, subgraph: Any, placed: Mapping[int, str], frozen: FrozenStudent) -> None:
    """Make each layer use its weight in the form that its activations need."""
    names = {edit.builtin(name): name for name in (*LAYERS, LOOKUP)}
    floats = frozen.scheme.activations == "float"
    operators: list[Any] = []
    dequantized: dict[int, int] = {}
    for operator in subgraph.operators:
        name = names.get(edit.code(operator))
        index = int(operator.inputs[1]) if name is not None else -1
        if index in placed:
            weight = subgraph.tensors[index]
            int4 = weight.type == edit.schema.TensorType.INT4
            if name == LOOKUP:
                edit.at_least(operator, LOOKUP, 4)
            elif floats:
                if index not in dequantized:
                    dequantized[index] = edit.add_tensor(subgraph, weight.shape, edit.schema.TensorType.FLOAT32)
                    version = 6 if int4 else 5
                    operators.append(edit.operator("DEQUANTIZE", version, [index], [dequantized[index]]))
                operator.inputs = np.asarray([operator.inputs[0], dequantized[index], *operator.inputs[2:]], np.int32)
            elif len(weight.shape) == 2 and name == "CONV_2D":
                _apply_to_pixels(edit, operator)
            elif name == HYBRID and frozen.scheme.activations == "dynamic_int8":
                edit.at_least(operator, name, _HYBRID_VERSION)
            elif int4 and name is not None:
                edit.at_least(operator, name, LAYERS[name])
        operators.append(operator)
    subgraph.operators = operators


def _apply_to_pixels(edit: Edit, operator: Any) -> None:
    """Make a CONV_2D of one pixel a FULLY_CONNECTED that keeps the leading axes.

    Raises:
        StageError: if it leaves out pixels.
    """
    old = operator.builtinOptions
    if (old.strideH, old.strideW) != (1, 1):
        raise StageError("TFLite cannot hold an int4 convolution of one pixel with a stride: choose int8 for it.")
    operator.opcodeIndex = edit.opcode("FULLY_CONNECTED", LAYERS["FULLY_CONNECTED"])
    operator.builtinOptionsType = edit.schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = edit.schema.FullyConnectedOptionsT(
        fusedActivationFunction=old.fusedActivationFunction, keepNumDims=True
    )
