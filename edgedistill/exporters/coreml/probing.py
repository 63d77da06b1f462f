"""Look inside a program as it is computed: the first layer that is not the student's, the largest value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.coreml import Evaluator, Operation, Program, load
from edgedistill.exporters._divergence import Call, alone, follow, weights_of, without_dynamic
from edgedistill.exporters.coreml.card import Weight, card_of
from edgedistill.exporters.coreml.running import beginning
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students._points import Convolution

# Of the largest value: what rounding stored floats to fp16 does to one layer, and float64 sums of fp32 constants.
ROUNDED, EXACT = 2e-3, 1e-6
_PRODUCTS = {"linear": ("x", "weight"), "conv": ("x", "weight"), "matmul": ("x", "y"), "gather": ("indices", "x")}
_PASSES = ("cast", "reshape", "transpose", "squeeze", "expand_dims", "identity", "relu", "relu6", "clip", "pad")
# where integers are computed as float32, a layer's codes are its values divided by their scales, maybe some at a time
_DIVIDES = ("real_div", "slice_by_index", "slice_by_size")
Values = dict[str, Tensor]


def first_divergence(frozen: FrozenStudent, path: Path, feeds: Mapping[str, NDArray[Any]]) -> str | None:
    """Which layer of the file first differs from the student's for these inputs, and by how much; None if none does.

    It is the arithmetic of the reference evaluator in float64, on the numbers that the file stores.

    Raises:
        VerificationError: if the package is foreign or damaged, or takes other inputs.
        MissingDependency: if coremltools, whose message classes are needed, is not installed.
    """
    program = load(path)
    card = card_of(program)
    return divergence(frozen, program, card.weights, card.places, feeds, ROUNDED)


def divergence(
    frozen: FrozenStudent,
    program: Program,
    weights: Mapping[str, Weight],
    grids: Mapping[str, str],
    feeds: Mapping[str, NDArray[Any]],
    rounding: float,
) -> str | None:
    """As `first_divergence`, for a program of which is told where its weights and the grids of its layers are."""
    values = computed(program, feeds)
    plain = frozen.build()
    readers: dict[str, list[Operation]] = {}
    for operation in program.main.operations:
        for name in operation.names_read:
            readers.setdefault(name, []).append(operation)
    makers = {output.name: operation for operation in program.main.operations for output in operation.outputs}
    calls: dict[str, list[Call]] = {}
    for place, weight in weights_of(frozen, plain).items():
        layer = plain.get_submodule(place)
        embeds = isinstance(layer, nn.Embedding)
        result = layer.result if isinstance(layer, Convolution) else f"{place}.out"
        grid = readers.get(grids.get(result, ""), [])  # what reads the codes of the layer's output
        calls[place] = []
        for operation, through in _reached(readers, weights[weight].operation):
            if (operation.kind == "gather") == embeds:
                given = next(a for a in _PRODUCTS[operation.kind] if operation.inputs[a] != (through,))
                (source,) = operation.inputs[given]
                assert isinstance(source, str)
                if makers[through].kind in _DIVIDES:
                    source = _undivided(makers, source)
                answer = (grid or [operation])[0].outputs[0].name
                call = Call(values[source], values[answer], _step_of(makers, values, source))
                if not any(call.answered is known.answered for known in calls[place]):  # another part of its sums
                    calls[place].append(call)
    return follow(
        without_dynamic(frozen).double(), calls, feeds, alone(rounding), values[program.main.outputs[0]], rounding
    )


def largest_value(path: Path, feeds: Mapping[str, NDArray[Any]]) -> tuple[float, str]:
    """The largest finite size of any float that the program computes for these inputs, and the operation that gives it.

    Raises:
        VerificationError, MissingDependency: as `first_divergence`.
    """
    found = (0.0, "nothing")

    def look(name: str, operation: str, value: Tensor) -> None:
        nonlocal found
        if value.is_floating_point() and value.numel():
            size = value.abs()
            found = max(found, (float(torch.where(size.isfinite(), size, 0).max()), f"{operation} {name}"))

    program = load(path)
    Evaluator(program, "fp64", look).predict({**feeds, **beginning(program.main)})
    return found


def computed(program: Program, feeds: Mapping[str, NDArray[Any]]) -> Values:
    """Every tensor of one prediction in float64, by its name in the program."""
    values: Values = {name: torch.from_numpy(np.array(value)) for name, value in feeds.items()}

    def keep(name: str, operation: str, value: Tensor) -> None:
        values[name] = value.clone()  # a state may be written to later

    evaluator = Evaluator(program, "fp64", keep)
    values |= {name: value for name, value in evaluator.constants.items() if isinstance(value, Tensor)}
    answer = evaluator.predict({**feeds, **beginning(program.main)})
    return values | {name: torch.from_numpy(value) for name, value in answer.items()}


def _reached(readers: Mapping[str, list[Operation]], weight: str, depth: int = 0) -> list[tuple[Operation, str]]:
    """The operations that compute with a weight, each with the name that it reads the weight by."""
    found = []
    for user in readers.get(weight, ()):
        if user.kind in _PRODUCTS:
            found.append((user, weight))
        elif user.kind in (*_PASSES, *_DIVIDES) and user.inputs["x"] == (weight,) and depth < 8:
            found += _reached(readers, user.outputs[0].name, depth + 1)
    return found


def _undivided(makers: Mapping[str, Operation], name: str) -> str:
    """What was divided by a scale, and maybe cut, to give this value."""
    while (maker := makers.get(name)) is not None and maker.kind in _DIVIDES:
        (source,) = maker.inputs["x"]
        assert isinstance(source, str)
        name = source
    return name


def _step_of(makers: Mapping[str, Operation], values: Values, name: str) -> float:
    """The step of the grid that a value lies on, looked for through operations that only move values."""
    for _ in range(8):
        operation = makers.get(name)
        if operation is None:
            return 0.0
        if operation.kind == "dequantize":
            (scale,) = operation.inputs["scale"]
            return float(values[scale] if isinstance(scale, str) else scale.array().item())
        (source,) = operation.inputs.get("x", ("",)) if operation.kind in _PASSES else ("",)
        if not isinstance(source, str):
            return 0.0
        name = source
    return 0.0
