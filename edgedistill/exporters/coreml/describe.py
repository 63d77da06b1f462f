"""Find every tensor of a student in the program that it was converted to, and write the card that says where they are.

A tensor is sought by its name, then by its numbers: coremltools renames what it folds, and stores equal tensors once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from edgedistill.coreml import Program
from edgedistill.errors import StageError
from edgedistill.exporters.coreml.card import Card, Weight
from edgedistill.exporters.coreml.contents import SMALL, Contents, holds, is_neutral
from edgedistill.exporters.coreml.naming import RENAMED
from edgedistill.exporters.coreml.network import Arithmetic, identifier, network, places
from edgedistill.quant.activations import Range
from edgedistill.quant.frozen import FrozenStudent


def describe(program: Program, frozen: FrozenStudent, signature: str, precision: Arithmetic = "float16") -> Card:
    """The card of a program that was just converted.

    Raises:
        StageError: if a tensor is not in it as it should be.
    """
    contents, rest = Contents(program), floats_of(frozen, precision)
    constants = contents.floats()

    def constant(name: str) -> str | None:
        found = _seek(f"model.{name}", constants, lambda operation: holds(constants[operation], rest[name], precision))
        if found is None and not is_neutral(rest[name]):
            raise StageError(f"coremltools did not keep {name} of the {frozen.family} student as it is.")
        return found

    stored: dict[str, Weight | str] = {**weights_in(contents, frozen)}
    stored |= {name: found for name in frozen.floats if (found := constant(name)) is not None}
    tables: dict[str, str] = {}
    for name in rest.keys() - frozen.floats.keys():
        held = [operation for operation, value in constants.items() if holds(value, rest[name], precision)]
        tables |= {name: held[0]} if held else {}
    named = {item for item in stored.values() if isinstance(item, str)} | {*tables.values()}
    derived = sorted(name for name, value in constants.items() if math.prod(value.shape) >= SMALL and name not in named)
    return Card(
        family=frozen.family,
        scheme=frozen.scheme,
        precision=precision,
        signature=signature,
        tensors=stored,
        places=places_in(contents, frozen),
        tables=tables,
        derived=tuple(derived),
    )


def weights_in(contents: Contents, frozen: FrozenStudent) -> dict[str, Weight]:
    """Where each quantized tensor lies.

    Raises:
        StageError: if one is not in the program on its grid.
    """
    grids, integers = frozen.grids(), contents.named("constexpr_")

    def weight(name: str) -> Weight:
        label, wanted = grids[name].label, frozen.quantized[name]

        def equal(operation: str) -> bool:
            found = contents.weight(operation, label)
            return np.array_equal(found.codes, wanted.codes) and np.array_equal(found.scales, wanted.scales)

        operation = _seek(f"model.{name}", integers, equal)
        if operation is None:
            raise StageError(f"coremltools left {name} of the {frozen.family} student float; {label} is wanted.")
        return Weight.model_validate({"operation": operation, "grid": label})

    return {name: weight(name) for name in frozen.quantized}


def places_in(contents: Contents, frozen: FrozenStudent) -> dict[str, str]:
    """The quantize operation of each grid of activations.

    Raises:
        StageError: if one is not in the program.
    """

    def place(name: str, wanted: Range) -> str:
        found = _seek(f"{name}.quantize", contents.named("quantize"), lambda item: contents.grid(item) == wanted)
        if found is None:
            raise StageError(f"coremltools dropped the grid of {name} of the {frozen.family} student.")
        return found

    return {name: place(name, wanted) for name, wanted in places(frozen).items()}


def floats_of(frozen: FrozenStudent, precision: Arithmetic = "float16") -> dict[str, NDArray[np.float32]]:
    """The float rest as a file holds it, before it is rounded, and the float buffers of the network, by name."""
    model = network(frozen, exact=precision == "float32")
    coded = {id(model.get_parameter(name)) for name in frozen.quantized}
    state: dict[str, torch.Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: value.detach().float().numpy()
        for name, value in state.items()
        if value.is_floating_point() and id(value) not in coded
    }


def _seek(name: str, operations: Iterable[str], equal: Callable[[str], bool]) -> str | None:
    wanted = identifier(name)
    by_name = [operation for operation in operations if RENAMED.sub("", operation) == wanted]
    return by_name[0] if by_name else next((operation for operation in operations if equal(operation)), None)
