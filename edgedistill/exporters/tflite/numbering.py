"""Number the tensors of every signature alike, so that their operators are equal bytes and are written once.

An operator names its tensors by index. The converter numbers constants first and merges equal ones, so two lengths of
the same network rarely agree. Here a tensor's number is its place in the order in which operators use it.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np


class _Numbers:
    """New numbers for the tensors of one subgraph, given out in the order of asking."""

    def __init__(self, tensors: list[Any], private: set[int]) -> None:
        self.old, self.private = tensors, private
        self.new: list[Any] = []
        self._known: dict[int, int] = {}

    def of(self, index: int) -> int:
        """The new number of an old one; a private tensor gets a fresh number each time. -1 (absent) stays."""
        if index < 0 or index in self._known:
            return self._known.get(index, index)
        self.new.append(copy.copy(self.old[index]))  # entries must stay independent of each other
        number = len(self.new) - 1
        if index not in self.private:
            self._known[index] = number
        self._scales(self.new[number])
        return number

    def _scales(self, tensor: Any) -> None:
        """A weight in groups names the tensor of its scales, which no operator does."""
        details = getattr(tensor.quantization, "details", None)
        if details is not None:
            tensor.quantization = copy.copy(tensor.quantization)
            tensor.quantization.details = copy.copy(details)
            tensor.quantization.details.scales = self.of(int(details.scales))


def renumber(model: Any, last: set[int], private_types: set[int]) -> None:
    """Reorder tensors in place, and drop unused ones.

    Call it when tensors without data have buffer 0. Operators whose builtin code is in `last` exist in some signatures
    only and are numbered after all others. Constants of `private_types` (shapes, axes) get one entry per use: which of
    them are equal differs with the length.
    """
    for subgraph, signature in zip(
        model.subgraphs, sorted(model.signatureDefs, key=lambda s: int(s.subgraphIndex)), strict=True
    ):
        private = {n for n, t in enumerate(subgraph.tensors) if t.buffer and t.type in private_types}
        numbers = _Numbers(subgraph.tensors, private)
        subgraph.inputs = _of(numbers, subgraph.inputs)
        codes = [model.operatorCodes[o.opcodeIndex].builtinCode for o in subgraph.operators]
        order = sorted(range(len(codes)), key=lambda n: codes[n] in last)
        for operator in (subgraph.operators[n] for n in order):
            operator.inputs, operator.outputs = _of(numbers, operator.inputs), _of(numbers, operator.outputs)
        subgraph.outputs = _of(numbers, subgraph.outputs)
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = numbers.of(int(entry.tensorIndex))
        subgraph.tensors = numbers.new


def _of(numbers: _Numbers, indices: Any) -> Any:
    return np.asarray([numbers.of(int(index)) for index in indices], np.int32)
