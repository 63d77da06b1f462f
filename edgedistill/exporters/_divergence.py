"""Name the first layer of a file that computes something else than the student's.

Each layer with a quantized weight is asked alone: the student's layer is given what the file's layer was given, and the
student goes on with what the file's layer answered. A difference therefore stays where it arises, and a wrong operator
between two layers shows as a wrong input of the second. A format's `probing.py` finds the layers in its files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.quant.activations import quantize_static
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.modules import FrozenConvolution, FrozenLinear

# How far a value on a grid may be off, in steps: operators between layers may round to the next code.
STEPS = 1.5
# A layer whose values are all smaller than this is compared as if they were this large: nothing there matters.
_LEAST = 1e-3


class Call(NamedTuple):
    """What a layer of the file was given and what it answered; `step` is that of a grid its input lies on, 0: none."""

    given: Tensor
    answered: Tensor
    step: float = 0.0


class Mismatch(Exception):
    """The first difference, in words; leaves the student's forward."""


Ask = Callable[[str, nn.Module, Tensor, Tensor, Any], Tensor]
"""Compares one layer: its place, the layer, what the student gives it and has of it, and the file's call. Returns what
the file's layer answered, in the student's layout; raises Mismatch where that differs."""


def weights_of(frozen: FrozenStudent, model: nn.Module) -> dict[str, str]:
    """The stored tensor that is the weight of each layer, by the layer's place; a tied one has several layers."""
    names = {id(model.get_parameter(name)): name for name in frozen.quantized}
    layers = [(place, getattr(layer, "weight", None)) for place, layer in model.named_modules(remove_duplicate=False)]
    return {place: names[id(weight)] for place, weight in layers if id(weight) in names}


def without_dynamic(frozen: FrozenStudent) -> nn.Module:
    """The student for runtimes that have no ranges that follow the input: they keep such activations float."""
    return frozen.to_module("as_trained" if frozen.scheme.activations == "static_int8" else "float")


def follow(
    module: nn.Module,
    calls: Mapping[str, Sequence[Any]],
    feeds: Mapping[str, NDArray[Any]],
    ask: Ask,
    logits: Tensor,
    rounding: float,
    answer: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None = None,
) -> str | None:
    """Compute the student beside the file; where they first differ and by how much, or None.

    `calls` are the file's of each layer in order, `logits` the file's answer. `answer` is
    what the student makes of the inputs, its logits unless told.
    """
    hooks = [
        module.get_submodule(place).register_forward_hook(partial(_hook, place, iter(made), ask))
        for place, made in calls.items()
    ]
    dtype = next((p.dtype for p in (*module.parameters(), *module.buffers()) if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad():
            given = {name: _as(dtype, value) for name, value in feeds.items()}
            ours = module(*given.values()).logits if answer is None else answer(module, given)
            same(ours, logits, "the answer, after the last layer", rounding)
    except Mismatch as found:
        return str(found)
    finally:
        for hook in hooks:
            hook.remove()
    return None


def alone(rounding: float, enters: Callable[[str, Tensor], Tensor] | None = None) -> Ask:
    """An `Ask` for runtimes that compute layers in floats, or on the student's own grids.

    `rounding` is what they may differ by, as a share of the largest value; `enters` is what the runtime itself does to
    the input of a layer, by its place.
    """

    def ask(place: str, layer: nn.Module, ours: Tensor, output: Tensor, call: Call) -> Tensor:
        given = shaped(call.given, ours, f"the input of {place}")
        source, result = call.step, 0.0
        if isinstance(layer, FrozenLinear | FrozenConvolution) and layer.ranges is not None:
            source, result = (grid.scale for grid in layer.ranges)
            ours = quantize_static(ours, layer.ranges[0]) * source
        same(ours, given, f"the input of {place}", rounding, source)
        given = given.to(ours.dtype)
        # `forward`, as a call would come back here through the hook
        expected = layer.forward(given if enters is None else enters(place, given))
        answered = shaped(call.answered, output, place)
        same(expected, answered, place, rounding, result)
        return answered.to(output.dtype)

    return ask


def shaped(theirs: Tensor, ours: Tensor, where: str) -> Tensor:
    """The file's values in the student's shape.

    Raises:
        Mismatch: they are not as many.
    """
    if theirs.numel() != ours.numel():
        raise Mismatch(f"{where}: the file has {list(theirs.shape)} where the student has {list(ours.shape)}")
    return theirs.reshape(ours.shape)


def same(ours: Tensor, theirs: Tensor, where: str, rounding: float, step: float = 0.0) -> None:
    """Compare values, to rounding or to `STEPS` of their grid.

    Raises:
        Mismatch: they differ by more.
    """
    away = (ours.double() - shaped(theirs, ours, where).double()).abs()
    limit = max(rounding * max(float(ours.double().abs().max()), _LEAST), STEPS * step)
    if not bool((away <= limit).all()):  # written so that a nan is a difference
        count = int((~(away <= limit)).sum())
        raise Mismatch(
            f"{where}: max abs {float(away.max()):.3g}, expected <= {limit:.2g} ({count} of {away.numel()} values)"
        )


def _hook(place: str, made: Iterator[Any], ask: Ask, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    call = next(made, None)
    if call is None:
        raise Mismatch(f"{place}: the file has no such layer")
    return ask(place, layer, inputs[0], output, call)


def _as(dtype: torch.dtype, value: NDArray[Any]) -> Tensor:
    """An input in the precision that the student is computed in; ids stay integers."""
    tensor = torch.from_numpy(value.copy())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
