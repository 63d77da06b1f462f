"""Read a .gguf of this package back from its own bytes, and hold it against a student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgedistill.errors import ForeignFile, SpecError, StageError, VerificationError
from edgedistill.exporters import same_weights
from edgedistill.exporters.gguf import blocks
from edgedistill.exporters.gguf.layouts import FAMILIES, Layout, layout, reordered
from edgedistill.exporters.gguf.parsing import F32, Q4_0, Q8_0, Parsed, Value, parse
from edgedistill.exporters.gguf.writing import metadata_of
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.stored import QuantizedTensor
from edgedistill.specs.base import Spec
from edgedistill.specs.quant import PerChannel, QuantScheme, WeightGrid


class Described(NamedTuple):
    """A file whose tensors have the names, shapes and types that its own description asks for."""

    parsed: Parsed
    layout: Layout
    grids: dict[str, WeightGrid]


def read_back(path: Path) -> dict[str, QuantizedTensor]:
    """Codes and scales of every quantized tensor, by our names and in our order of rows.

    Raises:
        VerificationError: if the file is not an exact .gguf of this package, or damaged: a tensor is missing, unknown,
            or not stored in the blocks of its grid, or llama.cpp would be told of another network.
    """
    return _quantized(path, describe(path))


def _quantized(path: Path, file: Described) -> dict[str, QuantizedTensor]:
    found = {}
    for ours, grid in file.grids.items():
        stored = file.parsed.tensors[file.layout.names[ours]]
        per_channel = isinstance(grid.granularity, PerChannel)
        try:
            tensor = blocks.unpack(ours, stored.data, stored.shape[0], grid.bits, per_channel)
        except VerificationError as error:
            raise VerificationError(f"{path}: {error}") from None
        order = file.layout.order.get(ours)
        found[ours] = tensor if order is None else reordered(tensor, np.argsort(order))
    return found


def verify(frozen: FrozenStudent, path: Path) -> None:
    """Check that the file holds exactly the frozen student: codes, scales, float tensors, and all that it says.

    Raises:
        VerificationError: naming the tensor or the key, and the first difference.
    """
    file = describe(path)
    same_weights(path, _quantized(path, file), frozen)
    lengths = [int(n) for n in np.atleast_1d(file.parsed.metadata["edgedistill.buckets"])]
    _same_metadata(path, file.parsed.metadata, metadata_of(frozen, lengths, exact=True))
    for ours, values in frozen.floats.items():
        stored = file.parsed.tensors[file.layout.names[ours]].data.tobytes()
        if stored != values.astype("<f4").tobytes():
            raise VerificationError(f"{path}: {ours} is not in the file as the student holds it.")
    for theirs in file.layout.zeros:
        if file.parsed.tensors[theirs].data.any():
            raise VerificationError(f"{path}: {theirs}, which the student has not, is not zero.")


def describe(path: Path) -> Described:
    """A file of this package, all but its numbers and its tokenizer checked: a network that llama.cpp can be given.

    Raises:
        VerificationError: as `read_back` does.
    """
    parsed = parse(path)
    metadata = parsed.metadata
    if metadata.get("edgedistill.exact") is not True:
        kind = metadata.get("edgedistill.requantized")
        why = "it was not exported by this package" if kind is None else f"llama.cpp requantized it as {kind}"
        raise ForeignFile(f"{path}: does not hold a student exactly: {why}.")
    family, buckets = metadata.get("edgedistill.family"), metadata.get("edgedistill.buckets")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ForeignFile(f"{path}: holds a student of unknown family {str(family)[:40]!r}.")
    try:
        config: Spec = FAMILIES[family].Config.decode(_json(path, metadata, "edgedistill.config"), str(path))
        scheme = QuantScheme.decode(_json(path, metadata, "edgedistill.scheme"), str(path))
        labels = metadata.get("bert.classifier.output_labels", [])
        found = layout(family, config, labels if isinstance(labels, list) else [])
        tensors = FAMILIES[family].tensors(config)
        if not isinstance(buckets, np.ndarray) or buckets.dtype != np.uint32:
            raise VerificationError(f"{path}: edgedistill.buckets is no array of lengths.")
        expected = [signature.inputs[0].shape[1] for signature in FAMILIES[family].signatures(config, buckets.tolist())]
    except VerificationError:
        raise
    except (SpecError, StageError, ValueError, OverflowError) as error:  # the last: sizes beyond what the file has
        raise ForeignFile(f"{path}: describes no student: {error}") from None
    if expected != buckets.tolist():
        raise VerificationError(f"{path}: its buckets {buckets.tolist()} are not in order.")
    about = {key: value for key, value in metadata.items() if key in found.metadata}
    _same_metadata(path, about, found.metadata)
    grids = {tensor.name: tensor.grid(scheme) for tensor in tensors}
    shapes = {found.names[tensor.name]: tensor.shape for tensor in tensors} | found.zeros
    kinds = {found.names[name]: _kind(grid) for name, grid in grids.items()} | dict.fromkeys(found.zeros, F32)
    _same_tensors(path, parsed, shapes, kinds)
    return Described(parsed, found, {name: grid for name, grid in grids.items() if grid is not None})


def _kind(grid: WeightGrid | None) -> int:
    if grid is None:
        return F32
    return Q8_0 if grid.bits == 8 else Q4_0


def _json(path: Path, metadata: dict[str, Value], key: str) -> dict[str, Any]:
    text = metadata.get(key)
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ForeignFile(f"{path}: {key} is no JSON object: it was not exported by this package.")
    return found


def _same_tensors(path: Path, parsed: Parsed, shapes: dict[str, tuple[int, ...]], kinds: dict[str, int]) -> None:
    if parsed.tensors.keys() != shapes.keys():
        odd = ", ".join(sorted(parsed.tensors.keys() ^ shapes.keys())[:3])
        raise VerificationError(f"{path}: tensors missing or unknown: {odd[:200]}. Export it again.")
    for name, stored in parsed.tensors.items():
        if stored.shape != shapes[name] or stored.kind != kinds[name]:
            raise VerificationError(
                f"{path}: {name} has type {stored.kind} and shape {list(stored.shape)}, the student's has type "
                f"{kinds[name]} and shape {list(shapes[name])}."
            )


def _same_metadata(path: Path, found: dict[str, Value], expected: dict[str, Value]) -> None:
    for key in sorted(found.keys() | expected.keys()):
        a, b = found.get(key), expected.get(key)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            same = a.dtype == b.dtype and np.array_equal(a, b)
        else:
            same = type(a) is type(b) and bool(a == b)
        if not same:
            seen, wanted = (f"{value!r:.60}" for value in (a, b))
            raise VerificationError(f"{path}: {key} is {seen}, the student's is {wanted}. Export it again.")
