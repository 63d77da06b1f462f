"""What a file spends on its graph: operators, shapes, names. Measured on small exports, once for each part of a graph.

The bytes of a graph do not depend on how wide it is, and each layer adds as many as the last: so `graphs.toml` has them
by part, and `python bench/size.py --fit` measures them anew from exports of one and several layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from edgedistill.errors import SpecError
from edgedistill.plan.size.activations import convolution_sizes, counted_bytes, sizes_of
from edgedistill.plan.size.numbers import File, tflite_grid
from edgedistill.specs import PerGroup, QuantScheme, Spec
from edgedistill.students import StoredTensor

# Parts that say what a tensor is, for numbers.py, and bring no operators of their own.
LABELS = frozenset({"bias", "position", "decoder"})


class Part(Spec):
    """Bytes of one part of a graph: in a file of `one` entry point, of `many` (two), and what a `further` one adds.

    A decoder's .tflite reads a prompt as long as its caches with
    other operators: `whole` is the part in a file of that entry point only, `beside` what it adds to shorter ones.
    `each` are the tensors of an entry point that are no weights, as `activations.py` counts them, `longest` those of
    one that is as long as the caches, and `once` those of a file.
    """

    one: float
    many: float | None = None
    further: float = 0.0
    whole: float | None = None
    beside: float = 0.0
    each: tuple[str, ...] = ()
    longest: tuple[str, ...] | None = None
    once: tuple[str, ...] = ()

    def bytes(self, entries: int, whole: bool) -> float:
        """In a file of so many entry points, the longest of which may be as long as the caches."""
        if whole and self.whole is not None:
            return self.whole if entries == 1 else self.bytes(entries - 1, False) + self.beside
        if entries == 1:
            return self.one
        # a graph that was measured with one entry point only has but one: images have no length buckets
        return self.one if self.many is None else self.many + self.further * (entries - 2)


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

    def brings_tensors(self, name: str) -> bool:
        """Whether the tensors of a part that are no weights are counted, and not in its bytes."""
        part = self.parts.get(name)
        return part is not None and bool(part.each or part.longest or part.once)


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
    grid = tflite_grid(tensor, file.scheme) if format_name == "tflite" else tensor.grid(file.scheme)
    if grid is None or format_name == "gguf":
        return ()
    kind = "linear" if tensor.kind == "head" else tensor.kind
    if format_name == "coreml":
        return (f"{kind} ios18",) if file.ios18 else ()
    grouped = isinstance(grid.granularity, PerGroup)
    return (*[f"{kind} int4"] * (grid.bits == 4), *[f"{kind} groups"] * grouped)


def parts_of(format_name: str, tensor: StoredTensor, file: File, config: Spec) -> tuple[str, ...]:
    """The tensor's parts, and the one that comes with its grid in a decoder's .tflite.

    There a weight's groups are described once for each numbering of the tensors, of which prompts and `decode` have
    their own: `Mode.grids`, which know nothing of entry points, cannot say that.
    """
    if format_name != "tflite" or "kv_heads" not in vars(config):
        return tensor.parts
    return (*tensor.parts, *(f"decoder {name}" for name in grid_names(format_name, tensor, file)))


def special_parts(name: str, config: Spec) -> tuple[str, ...]:
    """Parts that come with another part in some students: converters write attention without what has the size 1."""
    known = vars(config)  # a search asks thousands of times, and a missing attribute of a Spec is slow to miss
    heads, keys, layers = known.get("heads"), known.get("kv_heads"), known.get("layers")
    if keys is None:
        return (f"{name} of one head",) if heads == 1 else ()
    if name != known.get("architecture") and not name.endswith(".layer"):
        return ()  # a head or a window, which come beside the network
    kind = "ungrouped" if keys == heads else None
    if keys == 1:
        kind = "of one head" if heads == 1 else "of one key"
    of = "decoder.layer" if name.endswith(".layer") else "decoder"
    single = ("decoder of one layer",) if layers == 1 and of == "decoder" else ()
    return single if kind is None else (*single, f"{of} {kind}")


def all_parts(names: Iterable[str], mode: Mode, config: Spec) -> list[str]:
    """Parts with the special ones that come with them; of those only what was found to make a difference."""
    own = [name for name in names if name not in LABELS or name in mode.parts]
    special = [found for name in own for found in special_parts(name, config)]
    return [*own, *(name for name in special if name in mode.parts)]


def part_bytes(
    format_name: str, mode: Mode, names: Sequence[str], file: File, config: Spec
) -> tuple[float, frozenset[str]]:
    """Bytes of the parts that come with one tensor, and those of them whose tensors are counted apart.

    Raises:
        SpecError: if a part was never measured in this kind of file.
    """
    total, entries = 0.0, len(file.buckets)
    whole = fills_caches(config, file.buckets)
    found = all_parts(names, mode, config)
    for name in found:
        part = mode.parts.get(name)
        if part is None:
            raise SpecError(
                f"the bytes of {name!r} in a {format_name} file are not measured; "
                f"known: {', '.join(mode.parts)}. Run: python bench/size.py --fit {format_name}"
            )
        total += part.bytes(entries, whole)
    return total, frozenset(name for name in found if mode.brings_tensors(name))


def tensors_bytes(mode: Mode, names: Iterable[str], buckets: Sequence[int], config: Spec) -> int:
    """Bytes of the tensors of a graph that are no weights, where they are counted."""
    whole = fills_caches(config, buckets)
    groups: list[tuple[Sequence[str], list[dict[str, int]]]] = []
    for name in sorted(names):
        if name.startswith("cnn"):
            groups.append((mode.parts[name].each, convolution_sizes(config, name == "cnn.pad")))
            continue
        part = mode.parts[name]
        ends = part.longest is not None and whole
        lengths = tuple(n for n in buckets if not (ends and n == buckets[-1]))
        kinds = (part.each, lengths), (part.longest or (), tuple(buckets[-1:] if ends else ())), (part.once, (1,))
        groups += [(lines, [sizes_of(config, n) for n in of]) for lines, of in kinds if lines]
    return counted_bytes(groups)


def fills_caches(config: Spec, buckets: Sequence[int]) -> bool:
    """Whether the longest entry point of a decoder is as long as its caches."""
    known = vars(config)
    return "kv_heads" in known and buckets[-1] == known.get("max_length")


def special_to(config: Spec) -> tuple[object, ...]:
    """What `part_bytes` looks at in a student: two students that are alike in it have the same bytes for each part."""
    known = vars(config)
    ones = tuple(known.get(name) == 1 for name in ("heads", "kv_heads", "layers"))
    return *ones, known.get("kv_heads") != known.get("heads"), known.get("architecture"), known.get("max_length")


def digits_of(tensor: StoredTensor) -> int:
    """How many digits the number of a tensor's layer has; 1 outside of layers."""
    parts = tensor.name.split(".", 2)
    return len(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 1
