"""Read a package of ours back from its own bytes: codes, scales, the float rest, and what must not be in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from edgedistill.coreml import Constant, Program, load
from edgedistill.errors import VerificationError
from edgedistill.exporters import same_weights
from edgedistill.exporters.coreml.card import Card, card_of
from edgedistill.exporters.coreml.contents import SMALL, Contents, holds, is_neutral, is_weight
from edgedistill.exporters.coreml.describe import floats_of
from edgedistill.exporters.coreml.network import places
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.stored import QuantizedTensor


def read_back(path: Path) -> dict[str, QuantizedTensor]:
    """Codes and scales of every weight, by name.

    Raises:
        MissingDependency: if coremltools, whose message classes are needed, is not installed.
        VerificationError: if the package is foreign or damaged, a weight is not stored as its card says, or it holds
            weights, compressed or float, that the card does not name.
    """
    program = load(path)
    card, contents = card_of(program), Contents(program)
    found = {name: contents.weight(item.operation, item.grid) for name, item in card.weights.items()}
    _nothing_else(program, card, contents, found)
    return found


def verify(frozen: FrozenStudent, path: Path) -> None:
    """Check that the package holds exactly the frozen student: codes and scales, the float rest and every grid.

    A float is held as the fp16 number nearest to it, or as it is in a package of float32; a bias of a static layer is
    first put on the int32 grid on which the student was trained to add it, and is in float32 held as that integer.

    Raises:
        VerificationError: naming the tensor or the place that differs.
    """
    same_weights(path, read_back(path), frozen)
    program = load(path)
    card, contents = card_of(program), Contents(program)
    if (card.family, card.scheme) != (frozen.family, frozen.scheme):
        raise VerificationError(f"{path}: its card is not that of a {frozen.family} student, {frozen.scheme.label}.")
    rest, constants = floats_of(frozen, card.precision), contents.floats()
    for name in frozen.floats.keys() - card.floats.keys():
        if not is_neutral(rest[name]):
            raise VerificationError(f"{path}: {name} is not in the file.")
    for name, operation in card.floats.items():
        if (
            name not in rest
            or operation not in constants
            or not holds(constants[operation], rest[name], card.precision)
        ):
            raise VerificationError(f"{path}: {name} is not in the file as the student holds it, in {card.precision}.")
    wanted = places(frozen)
    if card.places.keys() != wanted.keys():
        raise VerificationError(f"{path}: has grids at other places than the student.")
    for name, operation in card.places.items():
        if contents.grid(operation) != wanted[name]:
            raise VerificationError(f"{path}: the grid of {name} is {contents.grid(operation)}, not {wanted[name]}.")


def _nothing_else(program: Program, card: Card, contents: Contents, weights: Mapping[str, QuantizedTensor]) -> None:
    """Every compressed constant, every large float one and every grid has a name on the card, and no weight two."""
    where = program.path
    if len(program.functions) != 1:
        raise VerificationError(f"{where}: has functions {', '.join(sorted(program.functions))}; one is ours.")
    known = {item.operation for item in card.weights.values()} | {*card.floats.values(), *card.places.values()}
    for name in contents.named("constexpr_").keys() - known:
        raise VerificationError(f"{where}: holds {name}, a compressed weight that is not the student's.")
    for name in contents.named("quantize").keys() - known:
        raise VerificationError(f"{where}: quantizes activations in {name}, which the student does not.")
    for operation in program.main.operations:
        for value in (bound for bindings in operation.inputs.values() for bound in bindings):
            if operation.name in known or not isinstance(value, Constant) or not value.type.is_float:
                continue
            if math.prod(value.shape) < SMALL or not value.array().any():  # a layer without a bias gets one of zeros
                continue
            twice = next((name for name, weight in weights.items() if is_weight(value, weight)), None)
            if twice is not None:
                raise VerificationError(f"{where}: {operation.name} holds {twice} a second time, as floats.")
            if operation.name not in card.derived:
                raise VerificationError(f"{where}: {operation.name} holds floats that are not the student's.")
