"""Decoders as a .tflite has them: entry points that take keys and values and give them back, as LiteRT-LM calls them.

The caller keeps the caches. LiteRT-LM gives the caches that a call answered to the next one, in the same memory where
the runtime allows it, and fills a piece of a prompt that is shorter than its entry point with tokens 0; it needs no
attention mask, since the graph makes its own from `input_pos`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill import catalog
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students import Signature, part


def entry_points(frozen: FrozenStudent, buckets: Sequence[int]) -> tuple[Signature, ...]:
    """The signatures of the student's file: those of `generation` where the family makes text.

    Raises:
        ValueError: if a bucket is impossible.
    """
    family = catalog.load_plugin("students", frozen.family)
    if not hasattr(family, "generation"):
        return frozen.signatures(buckets)
    found: tuple[Signature, ...] = family.generation(family.Config.decode(frozen.config, "config"), buckets)
    return found


def derived_tables(frozen: FrozenStudent) -> list[NDArray[np.float32]]:
    """Float tables that a file of the student holds beside its tensors, since they follow from its sizes."""
    config = catalog.load_plugin("students", frozen.family).Config.decode(frozen.config, "config")
    tables = getattr(part(frozen.family, "module"), "derived", None)
    return [] if tables is None else [table.numpy() for table in tables(config)]


def keeps_caches(signature: Signature) -> bool:
    """Whether an entry point is one of `generation`."""
    return any(port.name == "input_pos" for port in signature.inputs)


def step(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One call of a decoder: the inputs of an entry point by name to its outputs by name, logits included."""
    layers = sum(name.startswith("kv_cache_k_") for name in inputs)
    caches = [(inputs[f"kv_cache_k_{n}"], inputs[f"kv_cache_v_{n}"]) for n in range(layers)]
    answer, changed = model.step(inputs["tokens"], inputs["input_pos"][:1], caches)  # type: ignore[operator]
    found: dict[str, Tensor] = {"logits": answer.logits}
    for n, (keys, values) in enumerate(changed):
        found |= {f"kv_cache_k_{n}": keys, f"kv_cache_v_{n}": values}
    return found


def answer_of(module: nn.Module, inputs: Mapping[str, Tensor], output: str) -> Tensor:
    """One output of a student for the inputs of any entry point, given in the entry point's order."""
    found: Tensor = step(module, inputs)[output] if "input_pos" in inputs else module(*inputs.values()).logits
    return found


def entry(model: nn.Module, signature: Signature) -> nn.Module:
    """What the converter is given for one signature: `model`, which answers `Outputs`, behind the signature's names."""
    return _Step(model, signature) if keeps_caches(signature) else _Whole(model, signature)


class _Whole(nn.Module):
    """The named inputs and the one named output of a signature without caches."""

    def __init__(self, model: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.model, self.signature = model, signature

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        given = (inputs[port.name] for port in self.signature.inputs)
        return {self.signature.outputs[0].name: self.model(*given).logits}


class _Step(nn.Module):
    """`step` with the outputs of one signature."""

    def __init__(self, model: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.model, self.names = model, [port.name for port in signature.outputs]

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        found = step(self.model, inputs)
        return {name: found[name] for name in self.names}


class WriteSlots(nn.Module):
    """What `Write` of the family computes, in the operators of TFLite: one, and that in place, for a single token.

    DYNAMIC_UPDATE_SLICE moves new slots that would not fit back to where they do, over older ones. So more tokens than
    one are written to a longer copy.
    """

    def forward(self, slots: Tensor, new: Tensor, position: Tensor) -> Tensor:
        """`slots` [1, heads, slots, width] with `new` [1, heads, new, width] from `position` [1] on."""
        from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice

        length, count = slots.shape[2], new.shape[2]
        zero = torch.zeros((), dtype=position.dtype)
        room = slots if count == 1 else torch.cat((slots, slots[:, :, :count]), 2)  # of any content
        written: Tensor = dynamic_update_slice(room, new, [zero, zero, position[0], zero])
        return written if count == 1 else written[:, :, :length]


def write_in_slots(model: nn.Module) -> None:
    """Let every layer of a decoder write its caches in TFLite's operators."""
    for name, module in list(model.named_modules()):
        if name.endswith((".write_keys", ".write_values")):
            assert not list(module.parameters())
            model.set_submodule(name, WriteSlots())
