"""Bytes of what a .tflite says about the tensors of its graph that are no weights, counted.

A file of ours has each table, vector and buffer once (exporters/tflite/pack.py), so it matters which of them are equal:
where a length is the width of a head, two shapes become one. `graphs.toml` has the tensors of one entry point, and of
each is said which sizes it is made of:

    "float length width"        an activation [length, width]
    "int32 2 = length width"    a constant of shape [2] that holds these two numbers
    "int32 length @"            the numbers from 0 on, of that shape
    "float 1 head_width/2 #"    a table of floats that follows from the sizes
    "shape outputs inputs"      of a tensor that is like no other, the shape alone
    "bias width"                zeros with a scale each, which a static layer without a bias is given
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, lru_cache
from math import prod
from operator import itemgetter
from typing import NamedTuple

from edgedistill import catalog
from edgedistill.specs import Spec

Sizes = Mapping[str, int]
BUFFER_ENTRY = 4  # of the list of buffers


_Table = tuple[str, tuple[int, ...], str, tuple[int, ...], str]


class _Tensor(NamedTuple):
    """One line, taken apart; `content` is empty for an activation, `bytes` are those of its table."""

    kind: str
    shape: Callable[[Sizes], tuple[int, ...]]
    content: str
    values: Callable[[Sizes], tuple[int, ...]]
    line: str
    bytes: int


def sizes_of(config: Spec, length: int) -> dict[str, int]:
    """The sizes that a graph is made of: the config's own, one entry point's length, and what follows from them."""
    found = {name: value for name, value in config if isinstance(value, int) and not isinstance(value, bool)}
    found["length"] = length
    if "heads" in found and "head_width" not in found:
        found["head_width"] = found["width"] // found["heads"]
    if "kv_heads" in found:
        found["groups"] = found["heads"] // found["kv_heads"]
    if "patch" in found:
        found["grid"] = found["image_size"] // found["patch"]
    return found


def convolution_sizes(config: Spec, padded: bool) -> list[dict[str, int]]:
    """The sizes of each convolution of a cnn, as a .tflite orders its kernel; or of each input that is padded first."""
    cnn = catalog.load_plugin("students", "cnn")
    return [sizes for segment in cnn.segments(config) for sizes in segment_sizes(segment, padded)]


def segment_sizes(segment: Hashable, padded: bool) -> list[dict[str, int]]:
    """`convolution_sizes` of one segment of a cnn."""
    cnn = catalog.load_plugin("students", "cnn")
    found = []
    for unit in cnn.units(segment):
        outputs, inputs, kernel, _ = unit.kernel
        by_channel = unit.name == ".depthwise"
        stride = 1 if unit.before == unit.side else 2
        zeros = cnn.same_padding(unit.before, kernel, stride)
        if not padded:
            first, last = (1, outputs) if by_channel else (outputs, inputs)
            found.append({"side": unit.side, "channels": outputs, "first": first, "kernel": kernel, "last": last})
        elif zeros[0] != zeros[1]:
            found.append({"side": unit.before + sum(zeros), "channels": outputs if by_channel else inputs})
    return found


def counted_bytes(groups: Sequence[tuple[Sequence[str], Sequence[Sizes]]]) -> int:
    """Tables, shapes and constants of all tensors: lines, with the sizes of each entry point that has such tensors.

    Which of them a file has once follows from which sizes are equal, so that is found once for each such pattern.
    """
    values: list[int] = []
    for lines, entries in groups:
        evaluators = [_evaluator(name) for name in _parsed(tuple(lines))[1]]
        for sizes in entries:
            values += [of(sizes) for of in evaluators]
    first: dict[int, int] = {}
    pattern = tuple([first.setdefault(value, place) for place, value in enumerate(values)])
    fixed, contents = _distinct(tuple([(tuple(lines), len(entries)) for lines, entries in groups]), pattern)
    return fixed + sum(_bytes(content, prod([values[place] for place in shape])) for content, shape in contents)


def counted_items(groups: Sequence[tuple[Sequence[str], Sequence[Sizes]]]) -> dict[Hashable, int]:
    """What `counted_bytes` counts, each with its bytes: of files put together, what several have counts once."""
    found: dict[Hashable, int] = {}
    for lines, entries in groups:
        tensors, names = _parsed(tuple(lines))
        for sizes in entries:
            known = {name: evaluate(name, sizes) for name in names}
            for one in tensors:
                shape, values = one.shape(known), one.values(known)
                found[one.kind, shape, one.content, values, one.line] = one.bytes
                found["shape", shape] = 4 + 4 * len(shape)
                if one.content:
                    size = values if one.content == "=" else shape
                    count = len(size) if one.content == "=" else prod(size)
                    found[one.content, size, one.line] = _bytes(one.content, count)
    return found


@lru_cache(maxsize=1024)
def _distinct(
    groups: tuple[tuple[tuple[str, ...], int], ...], pattern: tuple[int, ...]
) -> tuple[int, list[tuple[str, tuple[int, ...]]]]:
    """Bytes that do not depend on how large the sizes are, and the contents and shapes of the buffers whose bytes do.

    A size is told by its place in `pattern`, or by that of the first one that is equal.
    """
    tables: set[_Table] = set()
    contents: set[tuple[str, tuple[int, ...], str]] = set()
    total = start = 0
    for lines, entries in groups:
        tensors, names = _parsed(lines)
        for _ in range(entries):
            known = dict(zip(names, pattern[start : start + len(names)], strict=True))
            start += len(names)
            for one in tensors:
                shape, values = one.shape(known), one.values(known)
                table = one.kind, shape, one.content, values, one.line
                if table not in tables:
                    tables.add(table)
                    total += one.bytes
                    if one.content:
                        contents.add((one.content, values if one.content == "=" else shape, one.line))
    total += sum(4 + 4 * len(shape) for shape in {shape for _, shape, *_ in tables})
    total += sum(_buffer(len(size)) for content, size, _ in contents if content == "=")
    return total, [(content, size) for content, size, _ in contents if content != "="]


def _bytes(content: str, count: int) -> int:
    """So many numbers; those of a bias have a vector of scales."""
    return _buffer(count) + (4 + 4 * count) * (content == "bias")


def _buffer(count: int) -> int:
    """So many numbers of 4 bytes, with the entry that names their buffer."""
    return -(-(4 * count + 12) // 16) * 16 + BUFFER_ENTRY


@lru_cache(maxsize=256)
def _parsed(lines: tuple[str, ...]) -> tuple[tuple[_Tensor, ...], tuple[str, ...]]:
    """The lines taken apart, and every size that they are made of."""
    tensors, names = [], set()
    for line in lines:
        kind, *rest = line.split()
        content = next((mark for mark in ("=", "@", "#") if mark in rest), "")
        place = rest.index(content) if content else len(rest)
        content = "bias" if kind == "bias" else content
        shape, values = rest[:place], rest[place + 1 :]
        names |= {*shape, *values}
        # a table of floats is told from another of the same shape by its line
        told = line if content == "#" else ""
        table = 0 if kind in ("shape", "bias") else 8 + 4 * (kind != "float") + 4 * bool(content)
        tensors.append(_Tensor(kind, _taker(shape), content, _taker(values), told, table))
    return tuple(tensors), tuple(sorted(names))


def _taker(names: Sequence[str]) -> Callable[[Sizes], tuple[int, ...]]:
    """The values of some names, as a tuple."""
    if len(names) > 1:
        return itemgetter(*names)
    return (lambda sizes: (sizes[names[0]],)) if names else (lambda sizes: ())


def evaluate(expression: str, sizes: Sizes) -> int:
    """A number, the name of a size, or what is made of both: `groups*length`, `head_width/2`, `max_length+length`."""
    return _evaluator(expression)(sizes)


@cache
def _evaluator(expression: str) -> Callable[[Sizes], int]:
    if "+" in expression:
        terms = [_evaluator(term) for term in expression.split("+")]
        return lambda sizes: sum([term(sizes) for term in terms])
    if "/" in expression:
        above, below = (_evaluator(side) for side in expression.split("/"))
        return lambda sizes: above(sizes) // below(sizes)
    if "*" in expression:
        factors = [_evaluator(factor) for factor in expression.split("*")]
        return lambda sizes: prod([factor(sizes) for factor in factors])
    if expression.isdigit():
        number = int(expression)
        return lambda sizes: number
    return itemgetter(expression)
