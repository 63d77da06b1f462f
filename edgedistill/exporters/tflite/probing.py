"""Name the first layer of a file that computes something else than the student's.

Every layer with a weight is an operator whose weight the file names, so that layers are matched by name. Each is then
asked alone: the student's layer is given what the file's layer was given, and the student goes on with what the file's
layer answered. A difference therefore stays where it arises, and a wrong layer norm shows as a wrong input behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.errors import MissingDependency, StageError
from edgedistill.exporters._quiet import silenced
from edgedistill.exporters.tflite.reading import Use, names, parse, uses
from edgedistill.quant.activations import HIGH, LOW, Range, bias_codes, quantize_static
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.modules import FrozenLinear

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


class _Found(Exception):
    """The first difference; leaves the student's forward."""


def first_divergence(frozen: FrozenStudent, path: Path, feeds: Mapping[str, NDArray[Any]]) -> str | None:
    """Which layer of the file first differs from the student's for these inputs, and by how much; None if none does.

    Raises:
        VerificationError: if the file does not name its weights.
        MissingDependency: if ai-edge-litert is not installed.
        StageError: if the file has no signature for these inputs, or LiteRT refuses it.
    """
    schema, model = parse(path)
    stored = names(model, path)
    signature = _signature_for(model, feeds, path)
    subgraph = model.subgraphs[signature.subgraphIndex]
    read = partial(_read, schema, subgraph, _run(path, signature, feeds), signature.subgraphIndex)
    calls: dict[str, Iterator[_Call]] = {}
    found = list(uses(schema, model, subgraph, stored))
    for name in frozen.quantized:
        mine = [_call(schema, subgraph, use, read) for use in found if use.name == name]
        calls[name.removesuffix(".weight")] = iter(mine)
    module = frozen.to_module()
    for owner, answers in calls.items():
        layer = module.get_submodule(owner)
        layer.register_forward_hook(partial(_compare, frozen, owner, answers))
    try:
        with torch.no_grad():
            logits = module(*(torch.from_numpy(feeds[name]) for name in feeds)).logits
        return _differs(logits, read(int(signature.outputs[0].tensorIndex))[0], "after the last layer")
    except _Found as found_difference:
        return str(found_difference)


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
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingDependency(f"Running .tflite needs LiteRT ({error}): pip install ai-edge-litert") from None
    try:
        with silenced():  # it warns that keeping every tensor takes memory
            interpreter = Interpreter(model_path=str(path), num_threads=1, experimental_preserve_all_tensors=True)
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


def _compare(
    frozen: FrozenStudent, owner: str, answers: Iterator[_Call], layer: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> Tensor:
    """A hook on the student's layer: raises where the file differs, else answers what the file answered."""
    call = next(answers, None)
    if call is None:
        raise _Found(f"{owner}: the file has no such layer")
    ours = inputs[0]
    given, answered = _as_ours(call.given, ours), _as_ours(call.answered, output)
    if call.source is not None:
        steps = (quantize_static(ours, call.source) - given / call.source.scale).abs()
        if float(steps.max()) > 1.5:  # operators between layers may round to the next code
            raise _Found(f"before {owner}: its input is up to {float(steps.max()):.0f} steps off")
    else:
        told = _differs(ours, given, f"before {owner}")
        if told is not None:
            raise _Found(told)
    expected = _expected(frozen, owner, layer, given, call)
    if call.result is None:
        told = _differs(expected, answered, owner)
    else:
        # XNNPACK leaves convolutions of int4 to LiteRT's own kernel, which rounds twice
        rough = isinstance(layer, nn.Conv2d) and frozen.grids()[f"{owner}.weight"].bits == 4
        told = _off_grid(owner, expected, answered, call, rough)
    if told is not None:
        raise _Found(told)
    return answered.to(output.dtype)


def _as_ours(theirs: Tensor, ours: Tensor) -> Tensor:
    """The file's values as torch has them: channels first, padded, and with all leading axes."""
    if ours.dim() == 4 and theirs.dim() == 4:
        theirs = theirs.permute(0, 3, 1, 2)
        # the converter may fold a padding into the convolution behind it, as "SAME": an odd zero comes last
        missing = [ours.shape[axis] - theirs.shape[axis] for axis in (3, 2)]
        theirs = nn.functional.pad(theirs, [side for n in missing for side in (n // 2, n - n // 2)])
    return theirs.reshape(ours.shape)


def _expected(frozen: FrozenStudent, owner: str, layer: nn.Module, given: Tensor, call: _Call) -> Tensor:
    """The layer alone on the file's own input; float64 wherever the runtime is to agree to rounding."""
    if isinstance(layer, nn.Conv2d | nn.Linear) or (isinstance(layer, FrozenLinear) and layer.ranges is not None):
        weight = torch.from_numpy(frozen.quantized[f"{owner}.weight"].values()).double()
        bias = frozen.floats.get(f"{owner}.bias")
        shift = torch.zeros(len(weight)) if bias is None else torch.from_numpy(bias.copy())
        if call.source is not None:
            scales = torch.from_numpy(frozen.quantized[f"{owner}.weight"].scales.copy())
            shift = bias_codes(shift, call.source.scale, scales).double() * call.source.scale * scales
        if isinstance(layer, nn.Conv2d):
            out: Tensor = layer._conv_forward(given.double(), weight, shift.double())
            return out.clamp(0, 6) if call.relu6 else out
        out = nn.functional.linear(given.double(), weight, shift.double())
        return out
    out = layer.forward(given)  # not a call, which would come back here through the hook
    return out


def _off_grid(owner: str, expected: Tensor, answered: Tensor, call: _Call, rough: bool) -> str | None:
    """Compare codes, one step allowed where the exact value lies between two of them, or everywhere if `rough`."""
    assert call.result is not None
    scale, zero = call.result
    exact = expected.double() / scale
    wanted = exact.round().clamp(LOW - zero, HIGH - zero)
    steps = (answered.double() / scale - wanted).abs()
    tie = (((exact - exact.floor()) - 0.5).abs() < _TIE) | rough
    wrong = (steps > 0.5) & ~(tie & (steps < 1.5))
    if not bool(wrong.any()):
        return None
    return f"{owner}: {int(wrong.sum())} of {wrong.numel()} outputs differ, by up to {float(steps.max()):.0f} steps"


def _differs(ours: Tensor, theirs: Tensor, where: str) -> str | None:
    """Compare floats."""
    away = (ours.double() - theirs.reshape(ours.shape).double()).abs()
    limit = _ROUNDING * max(float(ours.abs().max()), 1e-3)
    wrong = ~(away <= limit)
    if not bool(wrong.any()):
        return None
    return f"{where}: {int(wrong.sum())} of {wrong.numel()} values differ, by up to {float(away.max()):.3g}"
