"""Bytes of a file before it exists, from the shapes of the student's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from edgedistill import catalog
from edgedistill.specs import PerGroup, QuantScheme, SizeEstimate
from edgedistill.students import StoredTensor

SCALE_BYTES = 4  # fp32, although the scheme's scales are fp16 numbers: the flatbuffer's `scale` is a vector of float
ZERO_POINT_BYTES = 8  # int64; all zero, but the runtime wants one for each scale
FLOAT_BYTES = 4

# What the graph costs: operators, tensors, shapes, names. Fitted to 13 files of edgedistill/exporters/tflite for the
# bert family: 1 to 6 layers, 1 to 4 signatures, 0.02 to 5.6 MB; largest error 0.5 %. The second signature costs most,
# as equal tables are written once and later signatures find theirs there. tests/plan/test_size.py holds it to 2 %.
FILE_BYTES = 3470
LINEAR_BYTES = 605
SECOND_SIGNATURE_BYTES = 2150
SECOND_SIGNATURE_LINEAR_BYTES = 400
FURTHER_SIGNATURE_BYTES = 830
# static_int8 adds quantize and dequantize operators and ranges: 4 files, largest error 0.4 %.
STATIC_LINEAR_BYTES = 190
STATIC_SIGNATURE_LINEAR_BYTES = 70


def tflite_size(tensors: Sequence[StoredTensor], scheme: QuantScheme, buckets: Sequence[int]) -> SizeEstimate:
    """Size of the .tflite with one signature for each bucket.

    The exporter writes equal tables once, so weights and their scales are counted once for all signatures, and the zero
    points, all zero, once for each different number of channels.
    """
    quantized = [tensor for tensor in tensors if tensor.kind != "float"]
    parts = {
        "codes": sum(prod(tensor.shape) * grid.bits / 8 for tensor in tensors if (grid := tensor.grid(scheme))),
        "scales": sum(tensor.shape[0] for tensor in quantized) * SCALE_BYTES,
        "zero_points": sum({tensor.shape[0] for tensor in quantized}) * ZERO_POINT_BYTES,
        "floats": sum(prod(tensor.shape) for tensor in tensors if tensor.kind == "float") * FLOAT_BYTES,
        "graph": _graph(tensors, scheme, len(buckets)),
    }
    return SizeEstimate(total_mb=sum(parts.values()) / 1e6, parts_mb={name: n / 1e6 for name, n in parts.items()})


def _graph(tensors: Sequence[StoredTensor], scheme: QuantScheme, signatures: int) -> float:
    """Bytes of everything that is not a number of the student."""
    channels = [tensor.shape[0] for tensor in tensors if tensor.kind in ("linear", "head")]
    linears = len(channels)
    total = FILE_BYTES + LINEAR_BYTES * linears
    if signatures > 1:
        total += SECOND_SIGNATURE_BYTES + SECOND_SIGNATURE_LINEAR_BYTES * linears
        total += FURTHER_SIGNATURE_BYTES * (signatures - 2)
    if scheme.activations == "static_int8":  # biases are int32 with a scale for each channel
        total += SCALE_BYTES * sum(channels)
        total += linears * (STATIC_LINEAR_BYTES + STATIC_SIGNATURE_LINEAR_BYTES * (signatures - 1))
    return total


def linear_size(terms: Mapping[str, float], tensors: Sequence[StoredTensor], scheme: QuantScheme) -> SizeEstimate:
    """Size of a file of one graph: its numbers, and so many bytes for the file and for each tensor in it.

    `terms` is the format's literal `SIZE`: `scale_bytes` and `float_bytes` for each number, `code_block_bytes` for each
    block of 32 codes beyond the codes themselves, `piece_bytes` for each row of an embedding (where the file carries
    the tokenizer), `file_bytes`, `quantized_bytes` and `float_tensor_bytes` for each tensor.
    """
    graph, parts = terms["file_bytes"], {"codes": 0.0, "scales": 0.0, "floats": 0.0}
    for tensor in tensors:
        grid = tensor.grid(scheme)
        if grid is None:
            parts["floats"] += prod(tensor.shape) * terms["float_bytes"]
            graph += terms["float_tensor_bytes"]
            continue
        if tensor.kind == "embedding":  # where the file carries the tokenizer: a piece of text for each row
            graph += tensor.shape[0] * terms.get("piece_bytes", 0.0)
        parts["codes"] += prod(tensor.shape) * (grid.bits / 8 + terms["code_block_bytes"] / 32)
        groups = tensor.shape[1] // grid.granularity.size if isinstance(grid.granularity, PerGroup) else 1
        parts["scales"] += tensor.shape[0] * groups * terms["scale_bytes"]
        graph += terms["quantized_bytes"]
    parts["graph"] = graph
    return SizeEstimate(total_mb=sum(parts.values()) / 1e6, parts_mb={name: n / 1e6 for name, n in parts.items()})


def largest(
    formats: Sequence[str], tensors: Sequence[StoredTensor], scheme: QuantScheme, buckets: Sequence[int]
) -> SizeEstimate:
    """The size of the largest of the files that will be written: each of them has to meet the budget.

    Raises:
        SpecError: for an unknown format.
    """
    sizes = []
    for name in formats:
        if name == "tflite":  # several signatures in one file: not a sum over tensors
            sizes.append(tflite_size(tensors, scheme, buckets))
        else:
            sizes.append(linear_size(catalog.constants("exporters", name)["SIZE"], tensors, scheme))
    return max(sizes, key=lambda size: size.total_mb)
