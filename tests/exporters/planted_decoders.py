"""Faults for decoders as .tflite, and a student in which rounding is coarse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgedistill.exporters.tflite.decoding import derived_tables
from edgedistill.exporters.tflite.reading import names, uses
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.specs import QuantScheme
from edgedistill.students import llama, part

CONFIG = llama.Config(
    architecture="qwen2", layers=3, width=64, heads=4, kv_heads=2, head_width=16, ffn=128, vocabulary=96, max_length=24
)
Change = Callable[[Any, Any, Path], None]


def student() -> FrozenStudent:
    """One channel of the stream is 15 times the others, as in trained decoders, so that int8 codes are coarse."""
    torch.manual_seed(0)
    model = part("llama", "module").build(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                nn.init.normal_(parameter, mean=1, std=0.2)
                parameter[7] *= 20
            else:
                nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else 1.2 / parameter.shape[1] ** 0.5)
        for layer in model.layers:
            layer.down.weight[11] *= 15
    return freeze(model, "llama", CONFIG, QuantScheme(), {})


def layers(schema: Any, model: Any, path: Path) -> list[dict[str, Any]]:
    """The operators with a weight, by its name, of each entry point."""
    stored = names(model, path)
    return [{use.name: use.operator for use in uses(schema, model, graph, stored)} for graph in model.subgraphs]


def without_bias(schema: Any, model: Any, path: Path) -> None:
    for operators in layers(schema, model, path):
        operator = operators["layers.2.value.weight"]
        operator.inputs = np.append(np.asarray(operator.inputs[:2], np.int32), np.int32(-1))


def swapped(schema: Any, model: Any, path: Path) -> None:
    for operators in layers(schema, model, path):
        first, second = (operators[f"layers.{n}.output.weight"] for n in (0, 1))
        first.inputs[1], second.inputs[1] = int(second.inputs[1]), int(first.inputs[1])


def constant(old: bytes, new: bytes) -> Change:
    def change(schema: Any, model: Any, path: Path) -> None:
        found = [buffer for buffer in model.buffers if buffer.data is not None and bytes(buffer.data) == old]
        assert found
        for buffer in found:
            buffer.data = np.frombuffer(new, np.uint8)

    return change


def of(value: float) -> bytes:
    return np.float32(value).tobytes()


def exchanged(side: str, part: str) -> Change:
    """Each entry point takes, or answers, the keys or values of layer 0 as those of layer 1."""

    def change(schema: Any, model: Any, path: Path) -> None:
        for signature in model.signatureDefs:
            by_name = {entry.name.decode(): entry for entry in getattr(signature, side)}
            first, second = by_name[f"kv_cache_{part}_0"], by_name[f"kv_cache_{part}_1"]
            first.tensorIndex, second.tensorIndex = int(second.tensorIndex), int(first.tensorIndex)

    return change


def before(
    schema: Any, model: Any, number: int, which: int, operator: int, options: str, by: np.ndarray[Any, Any]
) -> None:
    """The input `which` of the write number `number` of each entry point goes through an operator with a constant."""
    code = schema.BuiltinOperator.DYNAMIC_UPDATE_SLICE
    kind = schema.TensorType.FLOAT32 if by.dtype == np.float32 else schema.TensorType.INT32
    model.buffers.append(schema.BufferT(data=by.view(np.uint8)))
    model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=operator, version=1, builtinCode=operator))
    for graph in model.subgraphs:
        write = [o for o in graph.operators if model.operatorCodes[o.opcodeIndex].builtinCode == code][number]
        given, old = int(write.inputs[which]), graph.tensors[write.inputs[which]]
        graph.tensors.append(schema.TensorT(by.shape, kind, len(model.buffers) - 1, b"added"))
        graph.tensors.append(schema.TensorT(old.shape, kind, 0, b"changed"))
        constant, changed = len(graph.tensors) - 2, len(graph.tensors) - 1
        write.inputs[which] = changed
        about = {"builtinOptionsType": getattr(schema.BuiltinOptions, options)}
        added = schema.OperatorT(
            len(model.operatorCodes) - 1, [given, constant], [changed], **about,
            builtinOptions=getattr(schema, f"{options}T")(),
        )  # fmt: skip
        graph.operators.insert(graph.operators.index(write), added)


def elsewhere(further: int) -> Change:
    """Keys of layer 1 are written so many slots further on."""
    return lambda schema, model, path: before(
        schema, model, 2, 2, schema.BuiltinOperator.ADD, "AddOptions", np.array([0, 0, further, 0], np.int32)
    )


def in_the_first_slot(schema: Any, model: Any, path: Path) -> None:
    """Keys of layer 1 are written there, whatever their position."""
    zeros = np.zeros(4, np.int32)
    before(schema, model, 2, 2, schema.BuiltinOperator.MUL, "MulOptions", zeros)


def larger(schema: Any, model: Any, path: Path) -> None:
    """Values of layer 1 are a millionth larger."""
    before(schema, model, 3, 1, schema.BuiltinOperator.MUL, "MulOptions", np.array([1 + 1e-6], np.float32))


def unkept(schema: Any, model: Any, path: Path) -> None:
    """Each entry point answers the keys of layer 1 as it was given them."""
    for signature, graph in zip(model.signatureDefs, model.subgraphs, strict=True):
        (given,), (answered,) = (
            [entry for entry in entries if entry.name == b"kv_cache_k_1"]
            for entries in (signature.inputs, signature.outputs)
        )
        outputs = list(graph.outputs)
        outputs[outputs.index(answered.tensorIndex)] = int(given.tensorIndex)
        graph.outputs, answered.tensorIndex = outputs, int(given.tensorIndex)


SPEEDS = derived_tables(student())[0]
FASTER = SPEEDS * np.where(np.arange(len(SPEEDS)) == 1, np.float32(1.001), np.float32(1))
