"""LiteRT-LM bundles: a decoder's .tflite with its tokenizer, chat template and what ends an answer, in one file.

The .tflite in it is the one that the format `tflite` writes, byte for byte: this format may import that one, as a
bundle holds such a file. A student needs a tokenizer in its `task`: `tokenizer_json`, the content of its
tokenizer.json; and it may have `chat_template` and `special_tokens`, text by role, as in tokenizer_config.json.

`load` gives the logits of the model inside, computed by LiteRT, since LiteRT-LM shows none; its `engine` is LiteRT-LM
itself, which takes texts, and answers texts and how likely they are. Both ran on CPUs only: a GPU's or an NPU's
LiteRT-LM was never tried.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgedistill.errors import StageError
from edgedistill.exporters import tflite
from edgedistill.exporters.litertlm.proof import prove
from edgedistill.exporters.litertlm.reading import audit, first_divergence, largest_value, read_back, verify
from edgedistill.exporters.litertlm.running import BundleRunner, load
from edgedistill.exporters.litertlm.speech import speech_of
from edgedistill.exporters.litertlm.writing import write
from edgedistill.quant.frozen import FrozenStudent

__all__ = [
    "EXTRA",
    "REQUIRES",
    "SUFFIX",
    "BundleRunner",
    "audit",
    "export",
    "first_divergence",
    "largest_value",
    "load",
    "read_back",
    "verify",
]

SUFFIX = ".litertlm"
# What the .tflite inside stores exactly, as literals: the planner reads them without importing this module.
HOLDS = {
    "weights": ("int8 per channel", "int4 per channel", "int4 per group of 32"),
    "embeddings": ("int8 per channel", "int4 per channel", "int4 per group of 32"),
    "head": ("int8 per channel", "int4 per channel", "int4 per group of 32"),
    "activations": ("dynamic_int8", "float"),
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
COMPUTES = {"dynamic_int8": "as_trained", "float": "as_trained"}
PARITY = 5e-6
REQUIRES = ("litert_torch", "ai_edge_litert", "litert_lm_builder", "litert_lm")
EXTRA = "litertlm"


def export(frozen: FrozenStudent, buckets: Sequence[int], out: Path) -> None:
    """Write the bundle `out`, read it back, compare it with the student, and run it with LiteRT and with LiteRT-LM.

    `buckets` are the sizes of the pieces that a prompt is read in; the longest text is the student's `max_length`.

    Raises:
        MissingDependency: if a package of `REQUIRES` is not installed.
        StageError: if a bucket is impossible, the student is no decoder or has no tokenizer, or a library refuses it.
        VerificationError: if the file does not hold or compute what was trained. `out` appears only when all is well.
    """
    reason = frozen.scheme.misfit(HOLDS, EXCLUDES)
    if reason is not None:
        raise StageError(f"LiteRT-LM cannot hold this student: {reason}.")
    speech = speech_of(frozen)
    partial = out.with_name(f"{out.name}.partial{SUFFIX}")  # LiteRT-LM goes by the suffix
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model.tflite"
            tflite.export(frozen, buckets, model)
            write(frozen, speech, model, partial)
        verify(frozen, partial)
        prove(frozen, speech, partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
