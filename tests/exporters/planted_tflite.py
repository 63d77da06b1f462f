"""Faults for .tflite files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from planting import KERNEL, KEY, QUERY, UP, flipped, replaced

from edgedistill.exporters.tflite.carriers import LAYOUTS
from edgedistill.exporters.tflite.editing import Edit
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.reading import names, uses
from edgedistill.exporters.tflite.reading import parse as parse_tflite
from edgedistill.quant import FrozenStudent


def tflite_code(frozen: FrozenStudent, path: Path) -> None:
    codes = frozen.quantized[UP].codes.tobytes()
    replaced(path, codes, flipped(codes, 5))


def tflite_scale(frozen: FrozenStudent, path: Path) -> None:
    scales = frozen.quantized[UP].scales.tobytes()
    replaced(path, scales, flipped(scales, 8))


def tflite_graph(path: Path, change: Callable[[Edit, dict[str, Any]], None]) -> None:
    """`change` gets the editor and the operators with a weight, by its name; of the only signature."""
    schema, model = parse_tflite(path)
    (graph,) = model.subgraphs
    change(Edit(schema, model), {use.name: use.operator for use in uses(schema, model, graph, names(model, path))})
    path.write_bytes(Packer().pack(model))


def tflite_swapped(frozen: FrozenStudent, path: Path) -> None:
    def change(edit: Edit, layers: dict[str, Any]) -> None:
        query, key = layers[QUERY], layers[KEY]
        kept = query.inputs
        query.inputs = np.asarray([kept[0], *key.inputs[1:]], np.int32)
        key.inputs = np.asarray([key.inputs[0], *kept[1:]], np.int32)
        # every weight is dequantized before the first layer
        graph, kind = edit.model.subgraphs[0], edit.schema.BuiltinOperator.DEQUANTIZE
        codes = [code.builtinCode for code in edit.model.operatorCodes]
        graph.operators.sort(key=lambda operator: codes[operator.opcodeIndex] != kind)

    tflite_graph(path, change)


def tflite_transposed(frozen: FrozenStudent, path: Path) -> None:
    layout = LAYOUTS[names(parse_tflite(path)[1], path)[KERNEL].layout]
    stored = frozen.quantized[KERNEL].codes.transpose(layout)
    height = layout.index(2)
    replaced(path, stored.tobytes(), stored.swapaxes(height, layout.index(3)).tobytes())


def tflite_without_bias(frozen: FrozenStudent, path: Path) -> None:
    def change(_: Edit, layers: dict[str, Any]) -> None:
        layers[QUERY].inputs = np.asarray([*layers[QUERY].inputs[:2], -1], np.int32)

    tflite_graph(path, change)


def tflite_float(frozen: FrozenStudent, path: Path) -> None:
    def change(edit: Edit, layers: dict[str, Any]) -> None:
        values = frozen.quantized[UP].values()
        graph = edit.model.subgraphs[0]
        index = edit.add_tensor(graph, values.shape, edit.schema.TensorType.FLOAT32, edit.add_buffer(values))
        layers[UP].inputs = np.asarray([layers[UP].inputs[0], index, layers[UP].inputs[2]], np.int32)

    tflite_graph(path, change)


def tflite_padded(frozen: FrozenStudent, path: Path) -> None:
    """Padded by hand with the odd zero first, where the runtime, as the student, has it last."""

    def change(edit: Edit, layers: dict[str, Any]) -> None:
        graph, layer, types = edit.model.subgraphs[0], layers[KERNEL], edit.schema.TensorType
        shape = graph.tensors[layer.inputs[0]].shape
        height = int(shape[1])
        kernel = frozen.quantized[KERNEL].codes.shape[2]
        missing = (-(-height // 2) - 1) * 2 + kernel - height
        sides = np.array([[0, 0], *[[missing - missing // 2, missing // 2]] * 2, [0, 0]], np.int32)
        assert missing % 2, "an even padding has no odd zero"
        constant = edit.add_tensor(graph, [4, 2], types.INT32, edit.add_buffer(sides))
        wide = [1, height + missing, height + missing, int(shape[3])]
        padded = edit.add_tensor(graph, wide, types.FLOAT32)
        pad = edit.operator("PAD", 1, [int(layer.inputs[0]), constant], [padded])
        graph.operators.insert(graph.operators.index(layer), pad)
        layer.inputs = np.asarray([padded, *layer.inputs[1:]], np.int32)
        layer.builtinOptions.padding = edit.schema.Padding.VALID

    tflite_graph(path, change)
