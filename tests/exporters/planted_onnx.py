"""Faults for .onnx files, and how they are planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from planting import EVEN, KERNEL, UP, Change

from edgedistill.quant import FrozenStudent


def onnx_file(change: Callable[[FrozenStudent, Any], None]) -> Change:
    def edit(frozen: FrozenStudent, path: Path) -> None:
        model = onnx.load(path)
        change(frozen, model)
        path.write_bytes(model.SerializeToString())

    return edit


def constant(model: Any, name: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def reader(model: Any, name: str) -> Any:
    return next(node for node in model.graph.node if name in node.input)


def change(name: str, index: int = 0, by: int = 1) -> Callable[[Any], None]:
    """Flip bits of one byte of a constant."""

    def edit(model: Any) -> None:
        data = bytearray(constant(model, name).raw_data)
        data[index] ^= by
        constant(model, name).raw_data = bytes(data)

    return edit


def onnx_bit(name: str, at: int) -> Change:
    return onnx_file(lambda _, model: change(name, at)(model))


def exchange(model: Any, one: str, other: str) -> None:
    first, second = reader(model, one), reader(model, other)
    a, b = list(first.input).index(one), list(second.input).index(other)
    first.input[a], second.input[b] = other, one


@onnx_file
def onnx_swapped(_: FrozenStudent, model: Any) -> None:
    for suffix in ("weight.codes", "weight.scales", "bias"):
        exchange(model, f"layers.0.query.{suffix}", f"layers.0.key.{suffix}")


@onnx_file
def onnx_transposed(frozen: FrozenStudent, model: Any) -> None:
    constant(model, f"{KERNEL}.codes").raw_data = frozen.quantized[KERNEL].codes.swapaxes(2, 3).tobytes()


@onnx_file
def onnx_without_bias(_: FrozenStudent, model: Any) -> None:
    """The number stays in the file, read by something that does nothing."""
    add = reader(model, "layers.0.query.bias")
    before = next(name for name in add.input if name != "layers.0.query.bias")
    for node in model.graph.node:
        node.input[:] = [before if name == add.output[0] else name for name in node.input]


@onnx_file
def onnx_float(frozen: FrozenStudent, model: Any) -> None:
    node = reader(model, f"{UP}.codes")
    model.graph.initializer.append(onnx.numpy_helper.from_array(frozen.quantized[UP].values(), node.output[0]))
    model.graph.node.remove(node)
    for suffix in ("codes", "scales"):
        model.graph.initializer.remove(constant(model, f"{UP}.{suffix}"))


@onnx_file
def onnx_padded(_: FrozenStudent, model: Any) -> None:
    node = reader(model, reader(model, f"{EVEN}.codes").output[0])
    pads = next(attribute for attribute in node.attribute if attribute.name == "pads")
    pads.ints[:] = [pads.ints[0] + 1, pads.ints[1] + 1, pads.ints[2] - 1, pads.ints[3] - 1]
