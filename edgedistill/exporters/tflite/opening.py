"""A network whose weights and norms are inputs of the graph while it is converted, and constants afterwards.

The converter then never sees a number that it could fold, merge, transpose or multiply into another one: what comes out
names each tensor, and the student's own numbers are put there. It is also what makes an export as quick as the bare
conversion, as pairs of quantize and dequantize are twice the graph (`graph.convert`).

Not for convolutions, whose kernels would be transposed at run time, and not for static activations, whose grids the
converter must see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.exporters.tflite.decoding import entry, write_in_slots
from edgedistill.exporters.tflite.editing import Edit
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students import Signature

_PREFIX = "opened_"


def opens(frozen: FrozenStudent) -> bool:
    """Whether a student is converted this way."""
    static = frozen.scheme.activations == "static_int8"
    return not static and all(tensor.kind != "convolution" for tensor in frozen.tensors)


def opened_names(frozen: FrozenStudent) -> list[str]:
    """The tensors that become inputs: weights and what norms multiply by and add.

    Tables stay, as they are cut to a length, and biases, which belong to layers; so does what does nothing (a norm that
    was never trained multiplies by 1 and adds 0), which the converter leaves out.
    """
    layers = {name.removesuffix(".weight") for name in frozen.quantized}
    vectors = {name: values for name, values in frozen.floats.items() if values.ndim == 1}
    rest = [name for name, values in vectors.items() if not (values == 0).all() and not (values == 1).all()]
    return [*frozen.quantized, *(name for name in rest if name.removesuffix(".bias") not in layers)]


def add_opened(litert_torch: Any, frozen: FrozenStudent, signatures: Sequence[Signature]) -> Any:
    """litert-torch's converter, holding the signatures of a student with its tensors as further inputs."""
    model, converter = frozen.build(), litert_torch
    write_in_slots(model)
    names = {f"{_PREFIX}{number}": name for number, name in enumerate(opened_names(frozen))}
    # tensors of their own: one object given under two names is traced as a single input
    opened = {given: torch.ones_like(model.get_parameter(name)) for given, name in names.items()}
    for signature in signatures:
        sample = {port.name: torch.ones(port.shape, dtype=getattr(torch, port.dtype)) for port in signature.inputs}
        wrapped = _Opened(entry(model, signature), names).eval()
        converter = converter.signature(signature.name, wrapped, sample_kwargs=sample | opened)
    return converter


def close(edit: Edit, frozen: FrozenStudent) -> list[dict[int, tuple[str, str]]]:
    """Take those inputs away again; answers, for each subgraph, which tensor was which, by index, in our layout ""."""
    names, found = opened_names(frozen), []
    for subgraph, signature in zip(edit.model.subgraphs, edit.signatures(), strict=True):
        given = {entry.name.decode(): int(entry.tensorIndex) for entry in signature.inputs}
        opened = {index: key.removeprefix(_PREFIX) for key, index in given.items() if key.startswith(_PREFIX)}
        indices = {index: (names[int(number)], "") for index, number in opened.items()}
        signature.inputs = [entry for entry in signature.inputs if int(entry.tensorIndex) not in indices]
        subgraph.inputs = [index for index in subgraph.inputs if int(index) not in indices]
        found.append(indices)
    return found


class _Opened(nn.Module):
    """An entry point with the network's tensors as further inputs."""

    def __init__(self, inner: nn.Module, names: dict[str, str]) -> None:
        super().__init__()
        self.inner, self.names = inner, names

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        fed = {name: value for name, value in inputs.items() if name not in self.names}
        tensors = {f"model.{name}": inputs[given] for given, name in self.names.items()}
        out: dict[str, Tensor] = torch.func.functional_call(self.inner, tensors, (), fed)
        return out
