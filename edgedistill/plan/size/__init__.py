"""Bytes of a file before it exists, from the shapes of the student's tensors.

The numbers of a student are counted to the byte (`numbers.py`); the graph around them was measured (`graphs.py`). For a
search, `Sizer` cuts a file into pieces whose bytes are counted once: the tensors outside of layers, and one layer.

>>> sizer = Sizer("tflite", scheme, buckets, config)
>>> outside, layer = sizer.piece(tensors_outside), sizer.piece(tensors_of_layer_0)
>>> sizer.total(outside, [(layer, 12)])
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan.size import bundle, numbers
from edgedistill.plan.size.graphs import Mode, digits_of, formats, grid_names, measured, part_bytes, tensors_bytes
from edgedistill.plan.size.numbers import Numbers
from edgedistill.specs import QuantScheme, SizeEstimate, Spec
from edgedistill.students import StoredTensor

__all__ = [
    "COUNTED_AS",
    "Piece",
    "Sizer",
    "file_size",
    "graph_bytes",
    "is_decoder",
    "largest",
    "said_bytes",
    "scheme_text",
    "split",
    "tflite_size",
]

# A tokenizer's pieces in a GGUF, where none was given: 20 bytes each for WordPiece, 36 for the BPE of SmolLM2 with its
# merges.
PIECE_BYTES = {"bert": 20}
BPE_PIECE_BYTES = 36
# How often the program of a Core ML package, and the card in it, have the name of a tensor (bert, 10 to 12 layers).
COREML_MENTIONS = 8
SHARED = {"tflite": numbers.tflite_shared, "coreml": numbers.coreml_shared}


COUNTED_AS = {"litertlm": "tflite"}  # a bundle holds such a file, and `said_bytes` around it


class Piece(NamedTuple):
    """Some tensors of a student in a file: their numbers, their share of the graph, what a digit more of the layer's
    number in their names costs, and the parts of the graph that bring tensors of their own."""

    numbers: Numbers
    graph: float
    digit: float
    parts: frozenset[str] = frozenset()


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
        ios18 = format_name == "coreml" and numbers.needs_ios18(scheme, is_decoder(config))
        self.format, self.scheme, self.config = format_name, scheme, config
        self.file = numbers.File(scheme, tuple(sorted(set(buckets))), ios18)
        self._mode = measured(format_name, scheme) if mode is None else mode
        self._rule = numbers.RULES[format_name]
        self._shared = SHARED.get(format_name)
        self._known_parts: dict[tuple[str, ...], tuple[float, frozenset[str]]] = {}
        self._brought: dict[frozenset[str], int] = {frozenset(): 0}
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

    def _parts(self, outside: Piece, layers: Sequence[tuple[Piece, int]], about: int) -> dict[str, float]:
        codes, scales, zero_points, floats, header, shared = outside.numbers
        graph, number = outside.graph + self.text + about, 0
        brought = outside.parts.union(*(piece.parts for piece, _ in layers))
        if brought not in self._brought:
            self._brought[brought] = tensors_bytes(self._mode, brought, self.file.buckets, self.config)
        graph += self._brought[brought]
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
        if self._shared is not None:
            zero_points += self._shared(shared)
        graph += header
        if self.format == "gguf":  # what comes before the data is filled up as a whole
            graph = -(-graph // numbers.GGUF_ALIGNMENT) * numbers.GGUF_ALIGNMENT
        return {"codes": codes, "scales": scales, "zero_points": zero_points, "floats": floats, "graph": graph}

    def _tensor(self, tensor: StoredTensor) -> Piece:
        graph, parts = self._part_bytes(tensor.parts)
        graph += sum(self._mode.grids.get(name, 0.0) for name in grid_names(self.format, tensor, self.file))
        graph += self._label(tensor)
        mentions = self._mentions(tensor)
        graph += (digits_of(tensor) - 1) * mentions
        if self.format == "tflite" and "position" in tensor.parts:
            graph += self._mode.slice * len(numbers.sliced(tensor, self.file.buckets))
        return Piece(self._rule(tensor, self.file), graph, mentions + self._names(tensor), parts)

    def graph_of(self, parts: Iterable[tuple[str, ...]]) -> float:
        """Bytes of each of these combinations of parts, once, and of the tensors that they bring."""
        found = [self._part_bytes(names) for names in parts]
        brought = frozenset[str]().union(*(names for _, names in found))
        return sum(size for size, _ in found) + tensors_bytes(self._mode, brought, self.file.buckets, self.config)

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


def split(tensors: Sequence[StoredTensor]) -> tuple[list[StoredTensor], list[list[StoredTensor]]]:
    """The tensors outside of layers, and those of each layer, numbered as they are."""
    outside: list[StoredTensor] = []
    layers: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        parts = tensor.name.split(".", 2)
        if len(parts) > 1 and parts[1].isdigit():
            layers.setdefault(parts[1], []).append(tensor)
        else:
            outside.append(tensor)
    return outside, list(layers.values())


def file_size(
    format_name: str,
    tensors: Sequence[StoredTensor],
    scheme: QuantScheme,
    buckets: Sequence[int],
    config: Spec,
    *,
    tokenizer_bytes: int | None = None,
    labels: Sequence[str] | None = None,
) -> SizeEstimate:
    """The size of one file.

    A GGUF also holds the student's `labels` and its tokenizer; `tokenizer_bytes` is what the latter adds to the
    header, 0 if there is none. Of a LiteRT-LM bundle it is `bundle.tokenizer_bytes`. What is not given is told from
    the shapes.

    Raises:
        SpecError: for an unknown format.
    """
    if format_name not in (*formats(), "litertlm"):
        catalog.constants("exporters", format_name)  # which refuses a name that is none
        raise SpecError(f"format {format_name!r} has no sizes in plan/size, so its files cannot be planned.")
    sizer = Sizer(format_name, scheme, buckets, config)
    about = said_bytes(format_name, tensors, sizer.file.buckets, config, tokenizer_bytes, labels)
    return sizer.estimate(sizer.piece(tensors), about=about)


def graph_bytes(
    format_name: str, tensors: Sequence[StoredTensor], scheme: QuantScheme, buckets: Sequence[int], config: Spec
) -> float:
    """Bytes of a file that depend on more than the shapes of the student's tensors, as on the number of its heads."""
    sizer = Sizer(format_name, scheme, buckets, config)
    return sizer.graph_of({tensor.parts for tensor in tensors if tensor.parts})


def said_bytes(
    format_name: str,
    tensors: Sequence[StoredTensor],
    buckets: Sequence[int],
    config: Spec,
    tokenizer_bytes: int | None = None,
    labels: Sequence[str] | None = None,
) -> int:
    """Bytes of what a file says about the student beside its tensors."""
    if format_name == "litertlm":
        return bundle.bytes_around(tensors[0].shape[0], tokenizer_bytes)
    return student_text(tensors, buckets, config, tokenizer_bytes, labels) if format_name == "gguf" else 0


def is_decoder(config: Spec) -> bool:
    """Whether a student is a decoder, whose Core ML packages have states."""
    return hasattr(config, "kv_heads")


def student_text(
    tensors: Sequence[StoredTensor],
    buckets: Sequence[int],
    config: Spec,
    tokenizer_bytes: int | None = None,
    labels: Sequence[str] | None = None,
) -> int:
    """Bytes of what a GGUF says about a student: its sizes, buckets, labels and tokenizer."""
    rows, classes = tensors[0].shape[0], 0
    head = next((tensor for tensor in tensors if tensor.kind == "head"), None)
    encoder = "bert" in tensors[0].parts
    if encoder and head is not None:
        classes = head.shape[0]
    total = 4 * len(buckets)
    total += len(json.dumps(config.model_dump(mode="json"), sort_keys=True))
    total += sum(8 + len(label.encode()) for label in (labels or [str(n) for n in range(classes)]))
    if tokenizer_bytes is None:
        tokenizer_bytes = rows * (PIECE_BYTES["bert"] if encoder else BPE_PIECE_BYTES)
    return total + tokenizer_bytes


def tflite_size(
    tensors: Sequence[StoredTensor], scheme: QuantScheme, buckets: Sequence[int], config: Spec
) -> SizeEstimate:
    """Size of the .tflite with one signature for each bucket."""
    return file_size("tflite", tensors, scheme, buckets, config)


def largest(
    names: Sequence[str], tensors: Sequence[StoredTensor], scheme: QuantScheme, buckets: Sequence[int], config: Spec
) -> SizeEstimate:
    """The size of the largest of the files that will be written: each of them has to meet the budget.

    Raises:
        SpecError: for an unknown format.
    """
    sizes = [file_size(name, tensors, scheme, buckets, config) for name in names]
    return max(sizes, key=lambda size: size.total_mb)


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
