"""A file cut into pieces whose bytes are counted once: the tensors outside of layers, and one layer."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import NamedTuple

from edgedistill.plan.size import numbers
from edgedistill.plan.size.activations import counted_items, segment_sizes
from edgedistill.plan.size.graphs import Mode, digits_of, grid_names, measured, part_bytes, parts_of, tensors_bytes
from edgedistill.plan.size.numbers import Numbers
from edgedistill.specs import QuantScheme, SizeEstimate, Spec
from edgedistill.students import StoredTensor

# How often the program of a Core ML package, and the card in it, have the name of a tensor (bert, 10 to 12 layers).
COREML_MENTIONS = 8
SHARED = {"tflite": numbers.tflite_shared, "onnx": numbers.onnx_shared, "coreml": numbers.coreml_shared}


COUNTED_AS = {"litertlm": "tflite"}  # a bundle holds such a file, and `said_bytes` around it


class Piece(NamedTuple):
    """Some tensors of a student in a file: their numbers, their share of the graph, what a digit more of the layer's
    number in their names costs, and the parts of the graph that bring tensors of their own."""

    numbers: Numbers
    graph: float
    digit: float
    parts: frozenset[str] = frozenset()


class Stack(NamedTuple):
    """What files of a student have in common whatever its depth and however many of its layers are `low`.

    Pairs are of the layer as it is and of the low one. `shared`: with both kinds of layers in the file, or one.
    """

    fixed: int
    frame: float
    data: tuple[int, int]
    graph: tuple[float, float]
    digit: tuple[float, float]
    shared: tuple[int, int]
    filled: bool

    def total(self, depth: int, low: int, about: int) -> int:
        """`Sizer.total` of so many layers, of which so many are low."""
        rest, (both, only) = depth - low, self.shared
        digits = self.digit[0] * _digits(rest) + self.digit[1] * (_digits(depth) - _digits(rest))
        graph = self.frame + about + rest * self.graph[0] + low * self.graph[1] + digits
        # of layers that are not there, no zero points are either
        data = self.fixed + rest * self.data[0] + low * self.data[1] + (both if rest else only)
        return round(data + _filled(graph, self.filled))

    def totals(self, depth: int, about: Sequence[int]) -> list[int]:
        """`total` with one, two and so on up to all layers low; `about` has an entry for each."""
        if self.filled or self.digit[0] != self.digit[1]:
            return [self.total(depth, low, about[low - 1]) for low in range(1, depth + 1)]
        layer, change = self.data[0] + self.graph[0], sum(self.data) + sum(self.graph)
        change -= 2 * layer
        start = self.fixed + self.frame + depth * layer + self.digit[0] * _digits(depth) + self.shared[0]
        found = [round(start + low * change + text) for low, text in enumerate(about[:-1], 1)]
        return [*found, self.total(depth, depth, about[-1])]


class Sizer:
    """The size of files of one format, scheme and set of length buckets."""

    def __init__(
        self,
        format_name: str,
        scheme: QuantScheme,
        buckets: Sequence[int],
        config: Spec,
        *,
        mode: Mode | None = None,
    ) -> None:
        """Take the graph's bytes from `mode`, else from `graphs.toml`. `config`: the student's; its depth and its
        vocabulary are those of the tensors that `piece` counts.

        Raises:
            SpecError: if no such file was measured.
        """
        format_name = COUNTED_AS.get(format_name, format_name)
        ios18 = format_name == "coreml" and numbers.needs_ios18(scheme, config)
        self.format, self.scheme, self.config = format_name, scheme, config
        self.file = numbers.File(scheme, tuple(sorted(set(buckets))), ios18)
        self._mode = measured(format_name, scheme) if mode is None else mode
        self._rule = numbers.RULES[format_name]
        self._shared = SHARED.get(format_name)
        self._known_parts: dict[tuple[str, ...], tuple[float, frozenset[str]]] = {}
        self.text: float = scheme_text(format_name, scheme)
        if ios18:
            self.text += self._mode.grids.get("file ios18", 0.0)

    def piece(self, tensors: Sequence[StoredTensor]) -> Piece:
        """Count some tensors, named as they are.

        Raises:
            SpecError: if a part of the graph was never measured.
        """
        codes = scales = zero_points = floats = header = 0
        graph = digit = 0.0
        shared: set[int] = set()
        parts: set[str] = set()
        known: dict[object, Piece] = {}  # layers differ in the digits of their numbers only
        for tensor in tensors:
            exception = self.scheme.layers.get(tensor.name)
            key = tensor[1:], len(tensor.name), digits_of(tensor), exception and exception.label
            one = known.get(key)
            if one is None:
                one = known[key] = self._tensor(tensor)
            found = one.numbers
            codes += found.codes
            scales += found.scales
            zero_points += found.zero_points
            floats += found.floats
            header += found.header
            shared |= found.shared
            parts |= one.parts
            graph += one.graph
            digit += one.digit
        total = Numbers(codes, scales, zero_points, floats, header, frozenset(shared))
        return Piece(total, graph, digit, frozenset(parts))

    def total(self, outside: Piece, layers: Sequence[tuple[Piece, int]] = (), *, about: int = 0) -> int:
        """The whole file: what is outside of layers, and kinds of layers with how many there are of each.

        `about`: bytes of what the file says about the student beside its tensors (`student_text`).
        """
        return round(sum(self._parts(outside, layers, about).values()))

    def estimate(self, outside: Piece, layers: Sequence[tuple[Piece, int]] = (), *, about: int = 0) -> SizeEstimate:
        """`total`, by part."""
        parts = self._parts(outside, layers, about)
        return SizeEstimate(total_mb=sum(parts.values()) / 1e6, parts_mb={k: n / 1e6 for k, n in parts.items()})

    def stack(self, outside: Piece, layer: Piece, low: Piece, brought: int) -> Stack:
        """Files of any number of layers, some as `layer` is and some as `low`; `brought` as `graph_of` has it."""
        fixed, data, data_low = (sum(piece.numbers[:4]) for piece in (outside, layer, low))
        frame, graph, graph_low = (piece.graph + piece.numbers.header for piece in (outside, layer, low))
        ends = outside.numbers.shared, low.numbers.shared
        return Stack(
            fixed=fixed,
            frame=frame + self.text + brought,
            data=(data, data_low),
            graph=(graph, graph_low),
            digit=(layer.digit, low.digit),
            shared=(self.shared([*ends, layer.numbers.shared]), self.shared(ends)),
            filled=self.format == "gguf",
        )

    def _parts(self, outside: Piece, layers: Sequence[tuple[Piece, int]], about: int) -> dict[str, float]:
        codes, scales, zero_points, floats, header, shared = outside.numbers
        graph, number = outside.graph + self.text + about, 0
        graph += self._brought(outside.parts.union(*(piece.parts for piece, _ in layers)))
        for piece, count in layers:
            one = piece.numbers
            codes += count * one.codes
            scales += count * one.scales
            zero_points += count * one.zero_points
            floats += count * one.floats
            header += count * one.header
            shared |= one.shared
            graph += count * piece.graph + piece.digit * (_digits(number + count) - _digits(number))
            number += count
        zero_points += self.shared([shared])
        graph = _filled(graph + header, self.format == "gguf")
        return {"codes": codes, "scales": scales, "zero_points": zero_points, "floats": floats, "graph": graph}

    def _tensor(self, tensor: StoredTensor) -> Piece:
        names = parts_of(self.format, tensor, self.file, self.config)
        graph, parts = self._part_bytes(names)
        if names == tensor.parts:
            graph += sum(self._mode.grids.get(name, 0.0) for name in grid_names(self.format, tensor, self.file))
        graph += self._label(tensor)
        mentions = self._mentions(tensor)
        graph += (digits_of(tensor) - 1) * mentions
        if self.format == "tflite" and "position" in tensor.parts:
            graph += self._mode.slice * len(numbers.sliced(tensor, self.file.buckets))
        return Piece(self._rule(tensor, self.file), graph, mentions + self._names(tensor), parts)

    def graph_of(self, parts: Iterable[tuple[str, ...]]) -> tuple[float, int]:
        """Bytes of each of these combinations of parts, once, and of the tensors that they bring."""
        found = [self._part_bytes(names) for names in parts]
        names = frozenset[str]().union(*(names for _, names in found))
        return sum(size for size, _ in found), self._brought(names)

    def shared(self, lengths: Iterable[frozenset[int]]) -> int:
        """Bytes of the zero points that a file holds once for each length."""
        return self._shared(frozenset[int]().union(*lengths)) if self._shared else 0

    def items(self, segment: Hashable, names: Iterable[str]) -> dict[Hashable, int]:
        """What a segment of a cnn brings of tensors beside weights; `names`: of the parts of the whole student."""
        groups = [(self._mode.parts[name].each, segment_sizes(segment, name == "cnn.pad")) for name in sorted(names)]
        return counted_items(groups)

    def _brought(self, names: frozenset[str]) -> int:
        """Of the tensors that a graph with these parts has beside its weights, where they are counted."""
        return tensors_bytes(self._mode, names, self.file.buckets, self.config) if names else 0

    def _part_bytes(self, names: tuple[str, ...]) -> tuple[float, frozenset[str]]:
        if names not in self._known_parts:
            self._known_parts[names] = part_bytes(self.format, self._mode, names, self.file, self.config)
        return self._known_parts[names]

    def _label(self, tensor: StoredTensor) -> int:
        """A Core ML package names the grid of each tensor."""
        grid = tensor.grid(self.scheme)
        return len(grid.label) if grid is not None and self.format == "coreml" else 0

    def _mentions(self, tensor: StoredTensor) -> int:
        """How often a graph has the tensor's name, beside what `numbers` counts."""
        if self.format == "onnx":
            return numbers.onnx_names(tensor)
        return COREML_MENTIONS if self.format == "coreml" else 0

    def _names(self, tensor: StoredTensor) -> int:
        """How often `numbers` counts the tensor's name."""
        if self.format == "onnx":
            return numbers.onnx_names(tensor)
        return {"gguf": 1, "tflite": int(tensor.kind != "float")}.get(self.format, 0)


def _filled(graph: float, filled: bool) -> float:
    """In a GGUF what comes before the data is filled up as a whole."""
    return -(-graph // numbers.GGUF_ALIGNMENT) * numbers.GGUF_ALIGNMENT if filled else graph


@cache
def _digits(layers: int) -> int:
    """How many digits the numbers of so many layers have beyond the first of each."""
    return sum(max(0, layers - 10**n) for n in range(1, len(str(layers)) + 1))


def scheme_text(format_name: str, scheme: QuantScheme) -> int:
    """Bytes of the scheme as the file has it."""
    values = scheme.model_dump(mode="json")
    if format_name == "gguf":
        return len(json.dumps(values, sort_keys=True))
    if format_name == "coreml":
        return len(json.dumps(values, separators=(",", ":"))) + len(scheme.label)
    return 0
