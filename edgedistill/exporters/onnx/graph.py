"""Frozen student to one ONNX graph through torch's exporter, with the codes, scales and floats under their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import nn

from edgedistill.errors import StageError
from edgedistill.exporters._entry import Entry
from edgedistill.exporters._quiet import imported, silenced
from edgedistill.exporters.onnx.codes import OPSET
from edgedistill.exporters.onnx.layers import lower
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students import Port, Signature

ANY = "any"
# A constant of the graph's own has at most so many elements: whatever is larger is computed where it is used, so that
# every large tensor of a file is one of the student's.
MOST_CONSTANT = 64
Sizes = tuple[int, ...]


def entry_of(signatures: Sequence[Signature]) -> tuple[Signature, dict[Sizes, str]]:
    """The one entry point that stands for all of them, and a name for each way in which a size varies.

    A size that differs between the signatures becomes -1, a free axis. A lone signature stays as it is.

    Raises:
        StageError: if they differ in more than sizes.
    """
    first = signatures[0]
    kinds = {tuple((port.name, port.dtype, len(port.shape)) for port in (*s.inputs, *s.outputs)) for s in signatures}
    if len(kinds) > 1 or len(first.outputs) != 1:
        raise StageError("An .onnx file holds one graph, and this student's entry points are not one: use a .tflite.")
    if len(signatures) == 1:
        return first, {}
    names: dict[Sizes, str] = {}

    def merged(ports: Sequence[tuple[Port, ...]]) -> tuple[Port, ...]:
        return tuple(_merged(port, names) for port in zip(*ports, strict=True))

    inputs = merged([signature.inputs for signature in signatures])
    return Signature(ANY, inputs, merged([signature.outputs for signature in signatures])), names


def convert(frozen: FrozenStudent, signatures: Sequence[Signature]) -> Any:
    """The graph as an `onnx.ModelProto`, before it is packed: constants small or named, codes still int8.

    Raises:
        MissingDependency: if onnx or onnxscript is not installed.
        StageError: if torch cannot convert the network.
    """
    # torch's exporter needs onnxscript, which brings onnx_ir
    _, onnx_ir = (
        imported(name, "Export to ONNX needs onnxscript", "'edgedistill[onnx]'") for name in ("onnxscript", "onnx_ir")
    )
    entry, names = entry_of(signatures)
    network = Entry(lower(frozen)).eval()
    free = tuple({n: torch.export.Dim.DYNAMIC for n, size in enumerate(p.shape) if size < 0} for p in entry.inputs)
    # traced with a size that is not the smallest: 1 would be taken for a constant
    sample = tuple(torch.ones(port.shape, dtype=getattr(torch, port.dtype)) for port in signatures[-1].inputs)
    try:
        with silenced(), torch.no_grad():
            program = torch.onnx.export(
                network,
                sample,
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                input_names=[port.name for port in entry.inputs],
                output_names=[port.name for port in entry.outputs],
                dynamic_shapes=(free,) if names else None,
            )
            assert program is not None
            _simplify(program.model, _names(network.model, frozen))
            model = onnx_ir.to_proto(program.model)
    except (RuntimeError, TypeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # torch wraps what went wrong in pages of advice
            cause = cause.__cause__
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise StageError(
            f"torch cannot convert the {frozen.family} student to ONNX ({type(cause).__name__}): {first}. "
            "Use another student family or report the model with this message."
        ) from error
    _describe(model.graph, entry, signatures, names)
    return model


def _merged(ports: Sequence[Port], names: dict[Sizes, str]) -> Port:
    shape = []
    for sizes in zip(*(port.shape for port in ports), strict=True):
        if len(set(sizes)) > 1:
            names.setdefault(sizes, "length" if not names else f"length_{len(names) + 1}")
        shape.append(sizes[0] if len(set(sizes)) == 1 else -1)
    return Port(ports[0].name, tuple(shape), ports[0].dtype)


def _names(model: nn.Module, frozen: FrozenStudent) -> dict[str, str]:
    """From every name that the exporter may give a tensor of the network to the name that the file gives it."""
    stored = {f"{name}.{part}" for name in frozen.quantized for part in ("codes", "scales")} | set(frozen.floats)
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    chosen = {id(tensor): name for name, tensor in tensors}  # one name for a tensor that is tied: a stored one
    chosen |= {id(tensor): name for name, tensor in tensors if name in stored}
    return {f"model.{name}": chosen[id(tensor)] for name, tensor in tensors}


def _simplify(model: Any, names: Mapping[str, str]) -> None:
    """Compute what does not depend on inputs or weights, drop what is not used, and give weights their names."""
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript import optimizer

    ours = set()
    for value in list(model.graph.initializers.values()):
        if value.name in names:
            value.name = names[value.name]
            ours.add(value.name)

    def foldable(node: Any) -> bool | None:
        return False if any(value is not None and value.name in ours for value in node.inputs) else None

    optimizer.fold_constants(model, should_fold=foldable, output_size_limit=MOST_CONSTANT)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    seen: dict[Any, Any] = {}
    for value in list(model.graph.initializers.values()):
        if value.name not in ours:
            array = value.const_value.numpy()
            first = seen.setdefault((array.dtype.str, array.shape, array.tobytes()), value)
            if first is not value:
                onnx_ir.convenience.replace_all_uses_with(value, first)
                del model.graph.initializers[value.name]
    common.CommonSubexpressionEliminationPass()(model)
    _rejoin(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    _renumber(model.graph, ours)


def _rejoin(graph: Any) -> None:
    """Let a layer read the codes that the layer before it wrote, where they pass through floats and back unchanged."""
    import onnx_ir

    for node in graph:
        if node.op_type != "QuantizeLinear":
            continue
        source, grid = _unmoved(node.inputs[0].producer()), node.inputs[1:]
        if source is not None and source.op_type == "Clip" and _saturates(grid, source):
            source = _unmoved(source.inputs[0].producer())
        if source is not None and source.op_type == "DequantizeLinear" and source.inputs[1:] == grid:
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], source.inputs[0])


def _unmoved(source: Any) -> Any:
    """The operator whose result is moved to a grid by `static.Grid`, where `source` ends that; else `source`."""
    before = source.inputs[0].producer() if source is not None and source.op_type == "Mul" else None
    return source if before is None or before.op_type != "Round" else before.inputs[0].producer().inputs[0].producer()


def _saturates(grid: tuple[Any, ...], clip: Any) -> bool:
    """Whether all that a clip would change takes the first or the last code anyway."""
    scale, zero_point, low, high = (float(value.const_value.numpy()) for value in (*grid, *clip.inputs[1:]))
    return (low / scale + zero_point, round(high / scale) + zero_point >= 255) == (0, True)


def _renumber(graph: Any, kept: set[str]) -> None:
    """Names `v0`, `v1`, … for all values but the graph's ports and the student's tensors."""
    ports = {id(value) for value in (*graph.inputs, *graph.outputs)}
    taken = kept | {value.name for value in (*graph.inputs, *graph.outputs)}
    free = (name for name in (f"v{n}" for n in count()) if name not in taken)
    values = [value for value in graph.initializers.values() if value.name not in kept]
    values += [value for node in graph for value in node.outputs if id(value) not in ports]
    # in two steps, as a new name may still be the old one of another value
    for number, value in enumerate(values):
        value.name = f"_renamed_{number}"
    for value in values:
        value.name = next(free)


def _describe(graph: Any, entry: Signature, signatures: Sequence[Signature], names: Mapping[Sizes, str]) -> None:
    """Name the graph as the entry point, and its free axes alike where they are of one size."""
    graph.name = entry.name
    every = zip(*((*signature.inputs, *signature.outputs) for signature in signatures), strict=True)
    for value, ports in zip((*graph.input, *graph.output), every, strict=True):
        axes = zip(value.type.tensor_type.shape.dim, zip(*(port.shape for port in ports), strict=True), strict=True)
        for axis, sizes in axes:
            axis.Clear()
            if sizes in names:
                axis.dim_param = names[sizes]
            else:
                axis.dim_value = sizes[0]
