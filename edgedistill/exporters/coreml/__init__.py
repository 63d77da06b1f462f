"""Core ML: one .mlpackage that computes in fp16, with integer codes and scales exactly as trained.

What ships is an fp16 program with int32 and float32 tensors at its interface. Phones want fp16: their Neural Engine has
nothing wider, and an fp32 program is computed on the CPU or the GPU instead. Codes are integers and every scale of a
frozen student is an fp16 number, so weights lose nothing. The float rest (biases, norms, position tables, and factors
such as 1/sqrt(width)) is rounded to fp16, each number to the nearest, which changes answers by about 5e-4 of the
largest: it is measured, and it is all that changes. The proof is in `proof.py`: every constant of the file is the fp16
number nearest to its float32 value, and the file with those values put back equals the student to 1e-7 in float64.

What the angles of rotary positions and the sums of squares of RMS norms are made of stays fp32 in that program: in fp16
the former have no digits left after some hundred tokens, and the latter overflow.

A package of precision "float32" computes what it holds in float32, on a CPU or a GPU. Core ML has no products of
integers, so static int8 is spelled out there as the student's own steps (`exact.py`), and answers are its very codes;
of fp16, which moves values by a step, they are some steps away.

`load` runs the reference evaluator (`edgedistill.coreml`), not Apple's runtime. Nothing here ran on Apple hardware.

Texts have one entry point, from int32 `input_ids` and `attention_mask` [1, N] to float32 `logits` [1, classes], where N
is anything from 1 to the largest bucket. A flexible length may keep a program off the Neural Engine; a single bucket
gives a fixed one. A decoder keeps keys and values in fp16 states, and takes beside its ids the int32 `position` [1],
the number of tokens they hold: 0 at the beginning of a text, which `load` fills in. iOS 17 is enough for int8 per
channel; 4 bits, groups and states need iOS 18. `dynamic_int8` activations are computed as floats: Core ML has no ranges
that follow the input.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgedistill.coreml import load as parse
from edgedistill.errors import StageError
from edgedistill.exporters.coreml.auditing import audit
from edgedistill.exporters.coreml.convert import Converter
from edgedistill.exporters.coreml.describe import describe
from edgedistill.exporters.coreml.probing import first_divergence, largest_value
from edgedistill.exporters.coreml.proof import prove, prove_float32
from edgedistill.exporters.coreml.reading import read_back, verify
from edgedistill.exporters.coreml.running import CoremlRunner, load
from edgedistill.exporters.coreml.seal import seal
from edgedistill.quant.frozen import FrozenStudent

__all__ = [
    "EXTRA",
    "REQUIRES",
    "SUFFIX",
    "CoremlRunner",
    "audit",
    "export",
    "first_divergence",
    "largest_value",
    "load",
    "read_back",
    "verify",
]

SUFFIX = ".mlpackage"
# What the format stores exactly, as literals: the planner reads them without importing this module.
HOLDS = {
    "weights": ("int8 per channel", "int4 per channel", "int4 per group of 32", "int8 per group of 32"),
    "embeddings": ("int8 per channel", "int4 per channel", "int4 per group of 32", "int8 per group of 32"),
    "head": ("int8 per channel", "int4 per channel", "int4 per group of 32", "int8 per group of 32"),
    "activations": ("dynamic_int8", "static_int8", "float"),
}
COMPUTES = {"dynamic_int8": "float", "static_int8": "as_trained", "float": "as_trained"}
REQUIRES = ("coremltools",)
EXTRA = "coreml"
# What rounding the float rest to fp16 does: 5e-4 at most for students of every family, with random weights.
PARITY = 2e-3


def export(
    frozen: FrozenStudent, buckets: Sequence[int], out: Path, precision: Literal["float16", "float32"] = "float16"
) -> None:
    """Write the package `out`, read it back, compare it with the student number by number, and compute it.

    `precision` is what the package computes in; decoders have float16 only.

    Raises:
        MissingDependency: if coremltools is not installed.
        StageError: if a bucket is impossible, or coremltools refuses the model.
        VerificationError: if the file does not hold or compute what was trained. `out` appears only when all is well.
    """
    reason = frozen.scheme.misfit(HOLDS)
    if reason is not None:
        raise StageError(f"Core ML cannot hold this student: {reason}.")
    try:
        signatures = frozen.signatures(buckets)
    except ValueError as error:
        raise StageError(f"{frozen.family} student: {error}.") from None
    partial, old = out.with_name(out.name + ".partial"), out.with_name(out.name + ".old")
    try:
        with tempfile.TemporaryDirectory() as folder:
            converter = Converter(frozen, signatures, precision)
            raw = converter.write(Path(folder))
            card = describe(parse(raw.path), frozen, converter.signature.name, precision)
            shutil.rmtree(partial, ignore_errors=True)
            seal(raw.path, card, converter.signature, partial)
        tried = signatures if converter.signature == signatures[0] else {*signatures, *frozen.signatures([1])}
        verify(frozen, partial)
        if precision == "float32":
            prove_float32(frozen, sorted(tried), parse(partial))
        else:
            prove(frozen, sorted(tried), parse(partial), raw.floats)
        if out.exists():  # a folder cannot be renamed onto another
            shutil.rmtree(old, ignore_errors=True)
            out.replace(old)
        partial.replace(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
