"""Faults for .mlpackage folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from planting import EVEN, KEY, QUERY, UP, Change

from edgedistill.coreml import load as parse_coreml
from edgedistill.coreml.proto import messages
from edgedistill.exporters.coreml.card import card_of
from edgedistill.quant import FrozenStudent


def coreml_number(name: str, arguments: Sequence[str], change: Callable[[FrozenStudent, bytes], bytes]) -> Change:
    """Other bytes for the codes or scales of a weight."""

    def edit(frozen: FrozenStudent, path: Path) -> None:
        program = parse_coreml(path)
        operation = next(o for o in program.main.operations if o.name == card_of(program).weights[name].operation)
        (bound,) = next(operation.inputs[argument] for argument in arguments if argument in operation.inputs)
        record = bound.record
        blob = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
        data = blob.read_bytes()
        new = change(frozen, data[record.offset : record.offset + record.size_bytes])
        blob.write_bytes(data[: record.offset] + new + data[record.offset + len(new) :])

    return edit


def coreml_graph(change: Callable[[FrozenStudent, list[Any], dict[str, Any]], None]) -> Change:
    """`change` gets the operations of the program, and those that read a weight, by its name."""

    def edit(frozen: FrozenStudent, path: Path) -> None:
        file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
        model = messages().Model.FromString(file.read_bytes())
        (function,) = model.mlProgram.functions.values()
        (block,) = function.block_specializations.values()
        by_operation = {item.operation: name for name, item in card_of(parse_coreml(path)).weights.items()}
        layers = {}
        for operation in block.operations:
            bound = [a.name for argument in operation.inputs.values() for a in argument.arguments]
            layers |= {by_operation[name]: operation for name in bound if name in by_operation}
        operations = list(block.operations)
        change(frozen, operations, layers)
        # constants first, so that any operation can read any of them
        operations.sort(key=lambda operation: not operation.type.startswith("const"))
        copies = [type(operation).FromString(operation.SerializeToString()) for operation in operations]
        del block.operations[:]
        block.operations.extend(copies)
        file.write_bytes(model.SerializeToString(deterministic=True))

    return edit


@coreml_graph
def coreml_swapped(_: FrozenStudent, operations: list[Any], layers: dict[str, Any]) -> None:
    query, key = layers[QUERY], layers[KEY]
    for argument in ("weight", "bias"):
        a, b = query.inputs[argument].arguments[0], key.inputs[argument].arguments[0]
        a.name, b.name = b.name, a.name


@coreml_graph
def coreml_without_bias(_: FrozenStudent, operations: list[Any], layers: dict[str, Any]) -> None:
    del layers[QUERY].inputs["bias"]


@coreml_graph
def coreml_float(frozen: FrozenStudent, operations: list[Any], layers: dict[str, Any]) -> None:
    stored = layers[UP].inputs["weight"].arguments[0].name
    operation = next(o for o in operations if o.outputs[0].name == stored)
    kind = operation.outputs[0].type
    name = operation.attributes["name"]
    copied = type(name)()
    copied.CopyFrom(name)
    for field in ("inputs", "attributes"):
        operation.ClearField(field)
    operation.type = "const"
    operation.attributes["name"].CopyFrom(copied)
    operation.attributes["val"].type.CopyFrom(kind)
    held = frozen.quantized[UP].values().astype(np.float16).tobytes()
    operation.attributes["val"].immediateValue.tensor.bytes.values = held


@coreml_graph
def coreml_padded(_: FrozenStudent, operations: list[Any], layers: dict[str, Any]) -> None:
    pad = layers[EVEN].inputs["pad"].arguments[0]
    operation = next((o for o in operations if o.outputs[0].name == pad.name), None)
    value = pad.value if operation is None else operation.attributes["val"]
    ints = value.immediateValue.tensor.ints.values  # top, bottom, left, right
    ints[:] = [ints[0] + 1, ints[1] - 1, ints[2] + 1, ints[3] - 1]
