"""TensorFlow Lite (LiteRT): one .tflite with a signature per length bucket, int8 codes exactly as trained.

Signature `length_N` takes int32 `input_ids` and `attention_mask` [1, N] and answers float32 `logits` [1, classes].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters.tflite.graph import convert
from edgedistill.exporters.tflite.reading import read_back, verify
from edgedistill.exporters.tflite.running import TfliteRunner, load
from edgedistill.exporters.tflite.shrink import shrink
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.specs.quant import QuantScheme

__all__ = ["REQUIRES", "SUFFIX", "TfliteRunner", "check", "export", "load", "read_back", "verify"]

SUFFIX = ".tflite"
# What the format stores exactly, as literals: the planner reads them without importing this module.
HOLDS = {"weight_bits": (8,), "activations": ("dynamic_int8", "static_int8")}
REQUIRES = ("litert_torch", "ai_edge_litert")
# The file and torch compute the same integers, but their float operators (layer norm, GELU, softmax) round differently
# by 1e-7, and a value that lies on the boundary of two codes then takes the other one, which later layers amplify. In a
# static file GELU is a table of 256 codes; one entry on a boundary is off by a step for every text (once: 2.5000007
# against 2.4999998 steps, in the first of 4 layers, gave 3 of 255 steps at the logits). These limits, as fractions of
# the largest logit, pass that and no wrong graph; the pipeline's parity check on real samples is the strict one.
_MEDIAN_LIMITS = {"dynamic_int8": 0.02, "static_int8": 0.1}
_WORST_LIMIT = 0.3
_SAMPLES_PER_BUCKET = 8


def check(scheme: QuantScheme) -> str | None:
    """None if this format holds the scheme exactly, else the reason why not."""
    if scheme.weight_bits != 8 or scheme.granularity.axis != 0:
        return "the TFLite exporter holds 8-bit codes per channel of axis 0 only"
    return None


def export(frozen: FrozenStudent, buckets: Sequence[int], out: Path) -> None:
    """Write `out`, read it back, compare it with the student number by number, and run every signature.

    Raises:
        MissingDependency: if litert-torch or ai-edge-litert is not installed.
        StageError: if a bucket is impossible, or the converter or the runtime refuses the model.
        VerificationError: if the file does not hold or compute what was trained. `out` appears only when all is well.
    """
    lengths = sorted(set(buckets))
    longest = frozen.config.get("max_length", max(lengths, default=0))
    if not lengths or lengths[0] < 1 or lengths[-1] > longest:
        raise StageError(f"Length buckets {list(buckets)} must be between 1 and the student's max_length = {longest}.")
    reason = check(frozen.scheme)
    if reason is not None:
        raise StageError(f"TFLite cannot hold this student: {reason}.")
    partial = out.with_name(out.name + ".partial")
    try:
        partial.write_bytes(shrink(convert(frozen, lengths), frozen))
        verify(frozen, partial)
        _executes(frozen, load(partial))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _executes(frozen: FrozenStudent, runner: TfliteRunner) -> None:
    """Run each signature on random texts and compare with the student computed in torch."""
    random = np.random.default_rng(0)
    module = frozen.to_module()
    vocabulary = frozen.config["vocabulary"]
    for length in runner.buckets:
        errors, largest = [], 0.0
        for _ in range(_SAMPLES_PER_BUCKET):
            ids = random.integers(0, vocabulary, length).astype(np.int32)
            mask = (np.arange(length) < random.integers(1, length + 1)).astype(np.int32)
            with torch.no_grad():
                expected = module(torch.from_numpy(ids)[None], torch.from_numpy(mask)[None]).logits[0].numpy()
            errors.append(float(np.abs(runner(ids, mask) - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
        if not (
            np.median(errors) <= _MEDIAN_LIMITS[frozen.scheme.activations] * largest
            and max(errors) <= _WORST_LIMIT * largest
        ):
            raise VerificationError(
                f"Signature length_{length} answers up to {max(errors):.3g} away from the student on random texts "
                f"(largest logit {largest:.3g}): the runtime does not compute what was trained."
            )
