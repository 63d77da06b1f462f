"""TensorFlow Lite (LiteRT): one .tflite with the student's signatures, integer codes exactly as trained.

A text encoder has a signature `length_N` per length bucket, from int32 `input_ids` and `attention_mask` [1, N] to
float32 `logits` [1, classes]; an image classifier one signature `image`, from float32 `pixels` [1, S, S, 3]; a decoder
those of `students.llama.generation`, `prefill_N` per bucket and `decode`, whose caller keeps keys and values.

The runtime is LiteRT with XNNPACK, as it is unless an app switches it off. Dynamic int4 per channel must not run
without it: LiteRT's own kernel (2.3.0) computes the code -8 wrong, and no file can forbid it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgedistill.errors import StageError
from edgedistill.exporters._memory import give_back
from edgedistill.exporters._proof import Feeds, Limits, executes
from edgedistill.exporters.tflite.analyzing import gpu_verdict
from edgedistill.exporters.tflite.auditing import audit
from edgedistill.exporters.tflite.carriers import carriers
from edgedistill.exporters.tflite.checking import verify
from edgedistill.exporters.tflite.decoding import entry_points, keeps_caches
from edgedistill.exporters.tflite.generating import DecoderRunner, load
from edgedistill.exporters.tflite.graph import convert
from edgedistill.exporters.tflite.opening import opens
from edgedistill.exporters.tflite.probing import first_divergence, largest_value
from edgedistill.exporters.tflite.proving import Reader, prove, proven
from edgedistill.exporters.tflite.proving_values import Expected
from edgedistill.exporters.tflite.reading import read_back
from edgedistill.exporters.tflite.running import TfliteRunner
from edgedistill.exporters.tflite.shrink import shrink
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import Signature

__all__ = [
    "EXTRA",
    "REQUIRES",
    "SUFFIX",
    "DecoderRunner",
    "Expected",
    "Reader",
    "TfliteRunner",
    "audit",
    "check",
    "export",
    "first_divergence",
    "gpu_verdict",
    "largest_value",
    "load",
    "proven",
    "read_back",
    "verify",
]

SUFFIX = ".tflite"
# What the format stores exactly, as literals: the planner reads them without importing this module.
HOLDS = {
    "weights": ("int8 per channel", "int4 per channel", "int4 per group of 32"),
    "embeddings": ("int8 per channel", "int4 per channel", "int4 per group of 32"),
    "head": ("int8 per channel", "int4 per channel", "int4 per group of 32"),
    "activations": ("dynamic_int8", "static_int8", "float"),
    "scale_dtype": ("fp16", "bf16"),
}
EXCLUDES = (
    (
        {"weights": "int4 per group of 32", "activations": "float"},
        "LiteRT reads such a weight without error and computes garbage from it; choose int4 per channel, or "
        "dynamic_int8 activations",
    ),
    (
        {"head": "int4 per group of 32", "activations": "float"},
        "LiteRT reads such a weight without error and computes garbage from it; choose int4 per channel, or "
        "dynamic_int8 activations",
    ),
    (
        {"weights": "int4 per group of 32", "scale_dtype": "fp16"},
        'XNNPACK rounds the scales of groups to bfloat16; choose scale_dtype = "bf16"',
    ),
    (
        {"head": "int4 per group of 32", "scale_dtype": "fp16"},
        'XNNPACK rounds the scales of groups to bfloat16; choose scale_dtype = "bf16"',
    ),
)
INT4_ROW_MULTIPLE = 2
"""What the width of an int4 matrix is a multiple of, unless a layer with float activations dequantizes it first."""
COMPUTES = {"dynamic_int8": "as_trained", "static_int8": "as_trained", "float": "as_trained"}
PARITY = 5e-6
REQUIRES = ("litert_torch", "ai_edge_litert")
EXTRA = ""
# A file with dynamic activations and torch compute the same integers, but their float operators (layer norm, GELU,
# softmax) round differently by 1e-7, and a value that lies on the boundary of two codes then takes the other one, which
# later layers amplify. These limits pass that and no wrong graph; the pipeline's parity check on real samples is the
# strict one. A static file is held to a step of its output.
_EXACT = Limits(PARITY, 1e-5)
_LIMITS = {"dynamic_int8": Limits(0.02, 0.3), "static_int8": _EXACT, "float": _EXACT}


def check(scheme: QuantScheme) -> str | None:
    """None if a file can hold students of this scheme, else what it cannot hold, and what it can."""
    return scheme.misfit(HOLDS, EXCLUDES)


def _unfit(frozen: FrozenStudent) -> str | None:
    """What of the student itself does not fit, for reasons that its scheme does not show."""
    grids, kind = frozen.grids(), frozen.scheme.activations
    for tensor in frozen.tensors:
        if tensor.kind == "convolution" and kind == "dynamic_int8":
            return (
                "LiteRT quantizes the input of a convolution anew for every image, which is not what is trained; "
                "choose static_int8 or float activations"
            )
        grid = grids.get(tensor.name)
        if grid is not None and tensor.kind == "embedding" and not any(t.kind == "head" for t in frozen.tensors):
            tied = frozen.scheme.model_copy(update={"head": grid}).misfit(HOLDS, EXCLUDES)
            if tied is not None:
                return f"its head is {tensor.name}, which is stored as {grid.label}: {tied}"
        odd = grid is not None and grid.bits == 4 and len(tensor.shape) == 2 and tensor.shape[1] % 2
        if odd and (kind != "float" or tensor.kind == "embedding"):
            return (
                f"{tensor.name} has rows of {tensor.shape[1]} int4 codes, and LiteRT takes an even number of them; "
                "choose an even width, or int8"
            )
    return None


def export(frozen: FrozenStudent, buckets: Sequence[int], out: Path) -> None:
    """Write `out`, read it back, compare it with the student number by number, and run every signature.

    Raises:
        MissingDependency: if litert-torch or ai-edge-litert is not installed.
        StageError: if a bucket is impossible, or the converter or the runtime refuses the model.
        VerificationError: if the file does not hold or compute what was trained. `out` appears only when all is well.
    """
    reason = check(frozen.scheme) or _unfit(frozen)
    if reason is not None:
        raise StageError(f"TFLite cannot hold this student: {reason}.")
    try:
        signatures = entry_points(frozen, buckets)
    except ValueError as error:
        raise StageError(f"{frozen.family} student: {error}.") from None
    partial = out.with_name(out.name + ".partial")
    try:
        given = {} if opens(frozen) else carriers(frozen)
        partial.write_bytes(shrink(convert(frozen, signatures, given), frozen, given))
        give_back()
        _prove(frozen, partial, signatures)
        give_back()
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _prove(frozen: FrozenStudent, path: Path, signatures: Sequence[Signature]) -> None:
    """Read the file back and compare it, then run every signature."""
    verify(frozen, path)
    if all(keeps_caches(signature) for signature in signatures):
        prove(frozen, path)
        return

    def explain(feeds: Feeds) -> str | None:
        return first_divergence(frozen, path, feeds)

    executes(frozen, load(path), _LIMITS[frozen.scheme.activations], explain=explain)
