"""Bytes of a core at every depth and in every way to store it: what is outside of layers, and one layer, counted once.

A file comes out as `plan.size.largest` has it, so a way to store a student is not missed by what files share or align.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from edgedistill.plan.problem import Problem
from edgedistill.plan.size import COUNTED_AS, Piece, Sizer, said_bytes, scheme_text, split
from edgedistill.plan.space import Low, scheme_of
from edgedistill.specs import QuantScheme, Spec
from edgedistill.students import StoredTensor

Texts = dict[tuple[str, int, bool, int, int], list[int]]


class _Kind(NamedTuple):
    """Files of one format whose embedding has one grid: without a layer in 4 bits, or with some."""

    sizer: Sizer
    outside: Piece
    layer: Piece
    low: Piece | None
    said: int


class StoredSizes:
    """Sizes of one core by depth and by what is in 4 bits."""

    def __init__(
        self, problem: Problem, low: Low | None, tensors: Sequence[StoredTensor], config: Spec, texts: Texts
    ) -> None:
        """`tensors` are those of `config`, which has layers. `texts` is kept between the cores of one search."""
        self._problem, self._low, self._config, self._tensors, self._texts = problem, low, config, tensors, texts
        self._outside, layers = split(tensors)
        self._layer = layers[0]
        self._kinds: dict[tuple[str, bool, bool], _Kind] = {}

    def sizes(self, depth: int, small: bool) -> list[int]:
        """Bytes of the largest file with no, one and so on up to all layers in 4 bits; `small`: the embedding is."""
        every = [self._sizes(name, depth, small) for name in self._problem.formats]
        return every[0] if len(every) == 1 else [max(same) for same in zip(*every, strict=True)]

    def _sizes(self, name: str, depth: int, small: bool) -> list[int]:
        buckets = self._problem.profile.student.buckets
        said = said_bytes(name, self._tensors, buckets, self._config)
        plain = self._kind(name, small, False)
        found = [plain.sizer.total(plain.outside, [(plain.layer, depth)], about=said)]
        if self._low is None:
            return found
        mixed = self._kind(name, small, True)
        assert mixed.low is not None
        for count, text in enumerate(self._said(name, depth, small), 1):
            layers = [(mixed.layer, depth - count), (mixed.low, count)]
            # of layers that are not there, no zero points are either
            found.append(mixed.sizer.total(mixed.outside, layers[count == depth :], about=said + text - mixed.said))
        return found

    def _kind(self, name: str, small: bool, mixed: bool) -> _Kind:
        key = name, small, mixed
        if key not in self._kinds:
            scheme, low = self._problem.scheme, self._low
            changes: dict[str, Any] = {"embeddings": low.grid} if low and small else {}
            if low and (small or mixed):
                changes["scale_dtype"] = low.scales
            # any exception says that a file has both grids; no tensor has that name
            exception = {"layers": {**scheme.layers, "any": low.grid}} if low and mixed else {}
            sizer = self._sizer(name, scheme.model_copy(update={**changes, **exception}))
            pieces = sizer.piece(self._outside), sizer.piece(self._layer)
            narrow = None
            if low and mixed:
                of = self._sizer(name, scheme.model_copy(update={**changes, "weights": low.grid}))
                narrow = of.piece(self._layer)
            said = scheme_text(sizer.format, sizer.scheme) if low and mixed else 0
            self._kinds[key] = _Kind(sizer, *pieces, narrow, said)
        return self._kinds[key]

    def _sizer(self, name: str, scheme: QuantScheme) -> Sizer:
        return Sizer(name, scheme, self._problem.profile.student.buckets, self._config)

    def _said(self, name: str, depth: int, small: bool) -> list[int]:
        """Bytes of the scheme in a file with one, two and so on up to all layers in 4 bits."""
        counted = COUNTED_AS.get(name, name)
        if counted not in ("gguf", "coreml"):
            return [0] * depth
        matrices = [tensor for tensor in self._layer if tensor.kind in ("linear", "convolution")]
        apart = [tensor for tensor in self._outside if tensor.kind in ("linear", "convolution")]
        key = counted, depth, small, len(matrices), len(apart)  # one family's cores differ in nothing else
        if key not in self._texts:
            layers = [t._replace(name=_numbered(t.name, n)) for n in range(depth) for t in matrices]
            schemes = [
                scheme_of(self._problem, [*apart, *layers], self._low, small, count) for count in range(1, depth + 1)
            ]
            self._texts[key] = [scheme_text(counted, scheme) for scheme in schemes]
        return self._texts[key]


def _numbered(name: str, number: int) -> str:
    family, _, rest = name.partition(".")
    return f"{family}.{number}.{rest.partition('.')[2]}"
