"""What a file spends on its graph: operators, shapes, names. Measured on small exports, once for each part of a graph.

The bytes of a graph do not depend on how wide it is, and each layer adds as many as the last: so `graphs.toml` has them
by part, and `python bench/size.py --fit` measures them anew from exports of one and several layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from edgedistill.errors import SpecError
from edgedistill.plan.size.numbers import File
from edgedistill.specs import PerGroup, QuantScheme, Spec
from edgedistill.students import StoredTensor

# Parts that say what a tensor is, for numbers.py, and bring no operators of their own.
LABELS = frozenset({"bias", "position", "decoder"})


class Part(Spec):
    """Bytes of one part of a graph: in a file of `one` entry point, of `many` (two), and what a `further` one adds."""

    one: float
    many: float | None = None
    further: float = 0.0


class Mode(Spec):
    """The parts of one kind of file, by the names that `StoredTensor.parts` gives them.

    `grids`: what one tensor adds that is not int8 per channel, by its kind ("linear int4", "embedding groups"; a head
    is a linear layer). Of Core ML what each tensor, and the whole file, adds where iOS 18 is needed, and what a static
    grid adds whose zero point is 0: which ones those will be is not known before training, and not in a prediction.
    `slice`: a table of positions cut to a shorter bucket.
    """

    parts: Mapping[str, Part]
    grids: Mapping[str, float] = {}
    slice: float = 0.0


class _Graphs(Spec):
    formats: Mapping[str, Mapping[str, Mode]]


@cache
def formats() -> Mapping[str, Mapping[str, Mode]]:
    """Mode by format and name."""
    return _Graphs.read_toml(Path(__file__).with_name("graphs.toml")).formats


def measured(format_name: str, scheme: QuantScheme) -> Mode:
    """The kind of file that a scheme makes.

    Raises:
        SpecError: if no such file was measured.
    """
    name = mode_name(format_name, scheme)
    mode = formats().get(format_name, {}).get(name)
    if mode is None:
        known = ", ".join(formats())
        raise SpecError(f"sizes of {format_name!r} files ({name}) are not measured; formats that are: {known}.")
    return mode


def mode_name(format_name: str, scheme: QuantScheme) -> str:
    """The name of the kind of file that a scheme makes, by its activations as the format's graphs have them."""
    if format_name == "gguf":
        return "any"
    if format_name == "tflite":
        return scheme.activations
    return "static" if scheme.activations == "static_int8" else "float"


def grid_names(format_name: str, tensor: StoredTensor, file: File) -> tuple[str, ...]:
    """The names under which `Mode.grids` has what a tensor's grid adds; none for int8 per channel.

    Core ML stores all grids alike, but from iOS 18 on, and there all of a file's, otherwise than before.
    """
    grid = tensor.grid(file.scheme)
    if grid is None or format_name == "gguf":
        return ()
    kind = "linear" if tensor.kind == "head" else tensor.kind
    if format_name == "coreml":
        return (f"{kind} ios18",) if file.ios18 else ()
    grouped = isinstance(grid.granularity, PerGroup)
    return (*[f"{kind} int4"] * (grid.bits == 4), *[f"{kind} groups"] * grouped)


def graph_bytes(format_name: str, mode: Mode, tensor: StoredTensor, file: File) -> float:
    """Bytes of the parts that come with one tensor, and of its grid.

    Raises:
        SpecError: if a part was never measured in this kind of file.
    """
    total, entries = 0.0, len(file.buckets)
    for name in tensor.parts:
        part = mode.parts.get(name)
        if part is None:
            if name in LABELS:
                continue
            raise SpecError(
                f"the bytes of {name!r} in a {format_name} file are not measured; "
                f"known: {', '.join(mode.parts)}. Run: python bench/size.py --fit {format_name}"
            )
        # a graph that was measured with one entry point only has but one: images have no length buckets
        many = part.one if part.many is None else part.many + part.further * (entries - 2)
        total += part.one if entries == 1 else many
    return total + sum(mode.grids.get(name, 0.0) for name in grid_names(format_name, tensor, file))


def digits_of(tensor: StoredTensor) -> int:
    """How many digits the number of a tensor's layer has; 1 outside of layers."""
    parts = tensor.name.split(".", 2)
    return len(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 1
