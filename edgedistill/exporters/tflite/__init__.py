"""TensorFlow Lite (LiteRT): one .tflite with the student's signatures, integer codes exactly as trained.

A text encoder has a signature `length_N` per length bucket, from int32 `input_ids` and `attention_mask` [1, N] to
float32 `logits` [1, classes].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgedistill.errors import StageError
from edgedistill.exporters._proof import Limits, executes
from edgedistill.exporters.tflite.graph import convert
from edgedistill.exporters.tflite.reading import read_back, verify
from edgedistill.exporters.tflite.running import TfliteRunner, load
from edgedistill.exporters.tflite.shrink import shrink
from edgedistill.quant.frozen import FrozenStudent

__all__ = ["EXTRA", "REQUIRES", "SUFFIX", "TfliteRunner", "export", "load", "read_back", "verify"]

SUFFIX = ".tflite"
# What the format stores exactly, as literals: the planner reads them without importing this module.
HOLDS = {
    "weights": ("int8 per channel",),
    "embeddings": ("int8 per channel",),
    "head": ("int8 per channel",),
    "activations": ("dynamic_int8", "static_int8"),
}
COMPUTES = {"dynamic_int8": "as_trained", "static_int8": "as_trained"}
REQUIRES = ("litert_torch", "ai_edge_litert")
EXTRA = ""
# The file and torch compute the same integers, but their float operators (layer norm, GELU, softmax) round differently
# by 1e-7, and a value that lies on the boundary of two codes then takes the other one, which later layers amplify. In a
# static file GELU is a table of 256 codes; one entry on a boundary is off by a step for every text (once: 2.5000007
# against 2.4999998 steps, in the first of 4 layers, gave 3 of 255 steps at the logits). These limits pass that and no
# wrong graph; the pipeline's parity check on real samples is the strict one.
_LIMITS = {"dynamic_int8": Limits(0.02, 0.3), "static_int8": Limits(0.1, 0.3)}


def export(frozen: FrozenStudent, buckets: Sequence[int], out: Path) -> None:
    """Write `out`, read it back, compare it with the student number by number, and run every signature.

    Raises:
        MissingDependency: if litert-torch or ai-edge-litert is not installed.
        StageError: if a bucket is impossible, or the converter or the runtime refuses the model.
        VerificationError: if the file does not hold or compute what was trained. `out` appears only when all is well.
    """
    reason = frozen.scheme.misfit(HOLDS)
    if reason is not None:
        raise StageError(f"TFLite cannot hold this student: {reason}.")
    try:
        signatures = frozen.signatures(buckets)
    except ValueError as error:
        raise StageError(f"{frozen.family} student: {error}.") from None
    partial = out.with_name(out.name + ".partial")
    try:
        partial.write_bytes(shrink(convert(frozen, signatures), frozen))
        verify(frozen, partial)
        executes(frozen, load(partial), _LIMITS[frozen.scheme.activations])
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
