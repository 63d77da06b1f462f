"""Name the first layer of a file that computes something else than the student's.

Every layer with a weight is an operator whose weight the file names, so that layers are matched by name. How they are
compared is in `_divergence.py`; here are the integer kernels of LiteRT, which round in their own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.errors import StageError
from edgedistill.exporters._divergence import STEPS, Mismatch, follow, same, shaped
from edgedistill.exporters._quiet import silenced
from edgedistill.exporters.tflite.decoding import answer_of
from edgedistill.exporters.tflite.generating import last_call
from edgedistill.exporters.tflite.reading import Use, names, parse, uses, without_logits
from edgedistill.exporters.tflite.running import require
from edgedistill.quant.activations import HIGH, LOW, Range, bias_codes, quantize_static
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.kernels import convolve
from edgedistill.quant.modules import FrozenConvolution, FrozenLinear

# What float operators may differ by, of the largest value: sums in another order.
_ROUNDING = 1e-5
# How near to the middle between two codes, in steps, a float32 runtime may take either.
_TIE = 5e-3


class _Call(NamedTuple):
    """What one operator of the file was given and answered, dequantized, and the grids where they are int8."""

    given: Tensor
    answered: Tensor
    source: Range | None
    result: Range | None
    relu6: bool


def first_divergence(frozen: FrozenStudent, path: Path, feeds: Mapping[str, NDArray[Any]]) -> str | None:
    """Which layer of the file first differs from the student's for these inputs, and by how much; None if none does.

    Raises:
        VerificationError: if the file does not name its weights.
        MissingDependency: if ai-edge-litert is not installed.
        StageError: if the file has no signature for these inputs, or LiteRT refuses it.
    """
    schema, model = parse(path)
    feeds, stored = last_call(path, feeds), names(model, path)
    signature = _signature_for(model, feeds, path)
    subgraph = model.subgraphs[signature.subgraphIndex]
    read = partial(_read, schema, subgraph, _run(path, signature, feeds), signature.subgraphIndex)
    calls: dict[str, list[_Call]] = {}
    found = list(uses(schema, model, subgraph, stored))
    for name in frozen.quantized:
        mine = [_call(schema, subgraph, use, read) for use in found if use.name == name]
        if mine or signature.subgraphIndex not in without_logits(model):
            calls[name.removesuffix(".weight")] = mine
    answers = {entry.name.decode(): int(entry.tensorIndex) for entry in signature.outputs}
    last = "logits" if "logits" in answers else max(answers)  # of the caches, the one that is written last
    answer, _ = read(answers[last])
    asked = partial(_ask, frozen)
    return follow(frozen.to_module(), calls, feeds, asked, answer, _ROUNDING, partial(answer_of, output=last))


def largest_value(path: Path, feeds: Mapping[str, NDArray[Any]]) -> tuple[float, str]:
    """The largest finite size of any float that the file computes for these inputs, and the operator that gives it.

    Raises:
        VerificationError, MissingDependency, StageError: as `first_divergence`.
    """
    schema, model = parse(path)
    known = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    feeds = last_call(path, feeds)
    signature = _signature_for(model, feeds, path)
    subgraph, found = model.subgraphs[signature.subgraphIndex], (0.0, "nothing")
    interpreter = _run(path, signature, feeds)
    for operator in subgraph.operators:
        for index in map(int, operator.outputs):
            if subgraph.tensors[index].type == schema.TensorType.FLOAT32:
                size = np.abs(interpreter.get_tensor(index, signature.subgraphIndex))
                largest = float(size[np.isfinite(size)].max(initial=0.0))
                found = max(found, (largest, known[model.operatorCodes[operator.opcodeIndex].builtinCode]))
    return found


def _signature_for(model: Any, feeds: Mapping[str, NDArray[Any]], path: Path) -> Any:
    for signature in model.signatureDefs or []:
        tensors = model.subgraphs[signature.subgraphIndex].tensors
        shapes = {entry.name.decode(): tuple(tensors[entry.tensorIndex].shape) for entry in signature.inputs}
        if shapes == {name: value.shape for name, value in feeds.items()}:
            return signature
    seen = ", ".join(f"{name}{list(value.shape)}" for name, value in feeds.items())
    raise StageError(f"{path}: has no signature for {seen}.")


def _run(path: Path, signature: Any, feeds: Mapping[str, NDArray[Any]]) -> Any:
    """An interpreter that has computed the signature and kept every tensor."""
    opened = require().Interpreter
    try:
        with silenced():  # it warns that keeping every tensor takes memory
            interpreter = opened(model_path=str(path), num_threads=1, experimental_preserve_all_tensors=True)
            interpreter.get_signature_runner(signature.signatureKey.decode())(**feeds)
    except (RuntimeError, ValueError) as error:
        raise StageError(f"LiteRT cannot run {path}: {str(error).splitlines()[0]}.") from error
    return interpreter


def _read(schema: Any, subgraph: Any, interpreter: Any, number: int, index: int) -> tuple[Tensor, Range | None]:
    """A tensor's values after the run, dequantized, and its grid if it is int8."""
    values, tensor = torch.from_numpy(interpreter.get_tensor(index, number)), subgraph.tensors[index]
    if tensor.type != schema.TensorType.INT8:
        return values, None
    grid = Range(float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0]))
    return (values.float() - grid.zero_point) * grid.scale, grid


def _call(schema: Any, subgraph: Any, use: Use, read: Any) -> _Call:
    given, source = read(int(use.operator.inputs[0]))
    answered, result = read(int(use.operator.outputs[0]))
    options = use.operator.builtinOptions
    relu6 = getattr(options, "fusedActivationFunction", 0) == schema.ActivationFunctionType.RELU6
    return _Call(given, answered, source, result, relu6)


def _ask(frozen: FrozenStudent, place: str, layer: nn.Module, ours: Tensor, output: Tensor, call: _Call) -> Tensor:
    """As `_divergence.alone`, with the rounding of integer kernels."""
    given, answered = _as_ours(call.given, ours, f"the input of {place}"), _as_ours(call.answered, output, place)
    if call.source is not None:
        steps = (quantize_static(ours, call.source) - given / call.source.scale).abs()
        if float(steps.max()) > STEPS:
            raise Mismatch(f"the input of {place}: max {float(steps.max()):.0f} steps, expected <= 1")
    else:
        same(ours, given, f"the input of {place}", _ROUNDING)
    expected = _expected(frozen, place, layer, given, call)
    if call.result is None:
        same(expected, answered, place, _ROUNDING)
    else:
        _on_grid(place, expected, answered, call)
    return answered.to(output.dtype)


def _as_ours(theirs: Tensor, ours: Tensor, where: str) -> Tensor:
    """The file's values as torch has them: channels first, padded, and with all leading axes."""
    if ours.dim() == 4 and theirs.dim() == 4:
        theirs = theirs.permute(0, 3, 1, 2)
        # the converter may fold a padding into the convolution behind it, as "SAME": an odd zero comes last
        missing = [ours.shape[axis] - theirs.shape[axis] for axis in (3, 2)]
        theirs = nn.functional.pad(theirs, [side for n in missing for side in (n // 2, n - n // 2)])
    return shaped(theirs, ours, where)


def _expected(frozen: FrozenStudent, place: str, layer: nn.Module, given: Tensor, call: _Call) -> Tensor:
    """The layer alone on the file's own input; float64 wherever the runtime is to agree to rounding."""
    static = isinstance(layer, FrozenConvolution) or (isinstance(layer, FrozenLinear) and layer.ranges is not None)
    if static or isinstance(layer, nn.Conv2d | nn.Linear):
        weight = torch.from_numpy(frozen.quantized[f"{place}.weight"].values()).double()
        bias = frozen.floats.get(f"{place}.bias")
        shift = torch.zeros(len(weight)) if bias is None else torch.from_numpy(bias.copy())
        if call.source is not None:
            scales = torch.from_numpy(frozen.quantized[f"{place}.weight"].scales.copy())
            shift = bias_codes(shift, call.source.scale, scales).double() * call.source.scale * scales
        if isinstance(layer, FrozenConvolution | nn.Conv2d):
            multiply = layer.convolve if isinstance(layer, FrozenConvolution) else convolve(layer)
            out: Tensor = multiply(given.double(), weight) + shift.double().view(-1, 1, 1)
            return out.clamp(0, 6) if call.relu6 else out
        return nn.functional.linear(given.double(), weight, shift.double())
    out = layer.forward(given)  # not a call, which would come back here through the hook
    return out


def _on_grid(place: str, expected: Tensor, answered: Tensor, call: _Call) -> None:
    """Compare codes, one step allowed where the exact value lies between two of them."""
    assert call.result is not None
    scale, zero = call.result
    exact = expected.double() / scale
    wanted = exact.round().clamp(LOW - zero, HIGH - zero)
    steps = (answered.double() / scale - wanted).abs()
    tie = ((exact - exact.floor()) - 0.5).abs() < _TIE
    wrong = (steps > 0.5) & ~(tie & (steps < STEPS))
    if bool(wrong.any()):
        raise Mismatch(
            f"{place}: max {float(steps.max()):.0f} steps, expected 0 ({int(wrong.sum())} of {wrong.numel()} values)"
        )
