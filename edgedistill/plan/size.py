"""Bytes of a file before it exists, from the shapes of the student's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from edgedistill.errors import SpecError, did_you_mean
from edgedistill.specs import QuantScheme, SizeEstimate
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


SizeModel = Callable[[Sequence[StoredTensor], QuantScheme, Sequence[int]], SizeEstimate]
SIZES: Mapping[str, SizeModel] = {"tflite": tflite_size}


def largest(
    formats: Sequence[str], tensors: Sequence[StoredTensor], scheme: QuantScheme, buckets: Sequence[int]
) -> SizeEstimate:
    """The size of the largest of the files that will be written: each of them has to meet the budget.

    Raises:
        SpecError: for a format whose size cannot be predicted.
    """
    for name in formats:
        if name not in SIZES:
            raise SpecError(f"the size of a {name!r} file cannot be predicted{did_you_mean(name, SIZES)}")
    return max((SIZES[name](tensors, scheme, buckets) for name in formats), key=lambda size: size.total_mb)
