"""Bytes of a core at every depth and in every way to store it: what is outside of layers, and one layer, counted once.

A file comes out as `plan.size.largest` has it, so a way to store a student is not missed by what files share or align.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from edgedistill.plan.problem import Problem
from edgedistill.plan.size import COUNTED_AS, Piece, Sizer, Stack, said_bytes, scheme_text, split
from edgedistill.plan.size.graphs import special_to
from edgedistill.plan.space import Low, scheme_of
from edgedistill.specs import QuantScheme, Spec
from edgedistill.students import StoredTensor


class Sizers(NamedTuple):
    """Sizers of files of one format whose embedding has one grid: without a layer in 4 bits, or with some.

    `said` are the bytes of the scheme that the sizer counts itself.
    """

    plain: Sizer
    low: Sizer | None
    said: int


class Known:
    """What the cores of one search have in common, each counted once: sizers, pieces, texts of schemes."""

    def __init__(self, problem: Problem, low: Low | None) -> None:
        """Nothing is known yet."""
        self.problem, self.low = problem, low
        self._sizers: dict[Hashable, Sizers] = {}
        self._pieces: dict[Hashable, Piece] = {}
        self._texts: dict[Hashable, list[int]] = {}
        self._rows: dict[Hashable, float] = {}

    def stack(self, name: str, small: bool, mixed: bool, core: StoredSizes) -> tuple[Stack, int]:
        """Such files of one core, and the bytes of the scheme that are in them already."""
        key, sizers = (name, small, mixed, core.special), self.sizers(name, small, mixed, core.config)
        outside, layer = (self.piece((key, part), sizers.plain, part) for part in (core.outside, core.layer))
        low = self.piece((key, "low", core.layer), sizers.low, core.layer) if sizers.low else layer
        return sizers.plain.stack(outside, layer, low, core.brought[name]), sizers.said

    def sizers(self, name: str, small: bool, mixed: bool, config: Spec) -> Sizers:
        """The sizers of such files of students like `config`."""
        key = name, small, mixed, special_to(config)
        found = self._sizers.get(key)
        if found is None:
            found = self._sizers[key] = self._new(name, small, mixed, config)
        return found

    def texts(self, key: Hashable, count: Callable[[], list[int]]) -> list[int]:
        """What `count` says, which is asked once for each key."""
        if key not in self._texts:
            self._texts[key] = count()
        return self._texts[key]

    def row(self, key: Hashable, count: Callable[[], float]) -> float:
        """Bytes of a row of the vocabulary as `count` says, which is asked once for each key."""
        if key not in self._rows:
            self._rows[key] = count()
        return self._rows[key]

    def piece(self, key: Hashable, sizer: Sizer, tensors: tuple[StoredTensor, ...]) -> Piece:
        """What `sizer` says of the tensors, which is asked once for each key."""
        found = self._pieces.get(key)
        if found is None:
            found = self._pieces[key] = sizer.piece(tensors)
        return found

    def _new(self, name: str, small: bool, mixed: bool, config: Spec) -> Sizers:
        scheme, low, buckets = self.problem.scheme, self.low, self.problem.profile.student.buckets
        changes: dict[str, Any] = {"embeddings": low.grid} if low and small else {}
        if low and (small or mixed):
            changes["scale_dtype"] = low.scales
        # any exception says that a file has both grids; no tensor has that name
        exception = {"layers": {**scheme.layers, "any": low.grid}} if low and mixed else {}
        plain = Sizer(name, scheme.model_copy(update={**changes, **exception}), buckets, config)
        if low is None or not mixed:
            return Sizers(plain, None, 0)
        narrow = scheme.model_copy(update={**changes, "weights": low.grid})
        return Sizers(plain, Sizer(name, narrow, buckets, config), scheme_text(plain.format, plain.scheme))


class StoredSizes:
    """Sizes of one core by depth and by what is in 4 bits."""

    def __init__(self, known: Known, tensors: Sequence[StoredTensor], config: Spec, brought: Sequence[int]) -> None:
        """`tensors` are those of `config`, which has layers. `known` is kept between the cores of one search.

        `brought`: by format, bytes of the tensors that the graph has beside the weights.
        """
        self._known, self._tensors = known, tensors
        self._problem, self._low = known.problem, known.low
        outside, layers = split(tensors)
        self.config, self.special = config, special_to(config)
        self.outside, self.layer = tuple(outside), tuple(layers[0])
        self._stacks: dict[tuple[str, bool, bool], tuple[Stack, int]] = {}
        self.brought = dict(zip(self._problem.formats, brought, strict=True))
        self._about: dict[str, int] = {}

    def sizes(self, depth: int, small: bool) -> list[int]:
        """Bytes of the largest file with no, one and so on up to all layers in 4 bits; `small`: the embedding is."""
        every = [self._sizes(name, depth, small) for name in self._problem.formats]
        return every[0] if len(every) == 1 else [max(same) for same in zip(*every, strict=True)]

    def _sizes(self, name: str, depth: int, small: bool) -> list[int]:
        said = self._said_about(name)
        stack, _ = self._stack(name, small, False)
        found = [stack.total(depth, 0, said)]
        if self._low is None:
            return found
        stack, own = self._stack(name, small, True)
        return found + stack.totals(depth, [said + text - own for text in self._said(name, depth, small)])

    def _stack(self, name: str, small: bool, mixed: bool) -> tuple[Stack, int]:
        key = name, small, mixed
        if key not in self._stacks:
            self._stacks[key] = self._known.stack(name, small, mixed, self)
        return self._stacks[key]

    def _said_about(self, name: str) -> int:
        """What a file says about the core."""
        if name not in self._about:
            self._about[name] = said_bytes(name, self._tensors, self._problem.profile.student.buckets, self.config)
        return self._about[name]

    @cached_property
    def _matrices(self) -> tuple[list[StoredTensor], list[StoredTensor]]:
        """Those of a layer and those outside that a scheme may name."""
        layer, apart = (
            [tensor for tensor in part if tensor.kind in ("linear", "convolution")]
            for part in (self.layer, self.outside)
        )
        return layer, apart

    def _said(self, name: str, depth: int, small: bool) -> list[int]:
        """Bytes of the scheme in a file with one, two and so on up to all layers in 4 bits."""
        counted = COUNTED_AS.get(name, name)
        if counted not in ("gguf", "coreml"):
            return [0] * depth
        matrices, apart = self._matrices

        def count() -> list[int]:
            layers = [t._replace(name=_numbered(t.name, n)) for n in range(depth) for t in matrices]
            schemes: list[QuantScheme] = [
                scheme_of(self._problem, [*apart, *layers], self._low, small, count) for count in range(1, depth + 1)
            ]
            return [scheme_text(counted, scheme) for scheme in schemes]

        # one family's cores differ in nothing else
        return self._known.texts((counted, depth, small, len(matrices), len(apart)), count)


def _numbered(name: str, number: int) -> str:
    family, _, rest = name.partition(".")
    return f"{family}.{number}.{rest.partition('.')[2]}"
