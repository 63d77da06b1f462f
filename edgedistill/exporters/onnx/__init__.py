"""ONNX: one .onnx with one graph of standard operators, integer codes exactly as trained; the portable reference.

A text encoder has a graph `any` whose texts have any length up to `max_length`, an image classifier its own `image`.
A student of one length bucket keeps that entry point, `length_N`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import StageError
from edgedistill.exporters._proof import Limits, executes
from edgedistill.exporters.onnx.audit import audit
from edgedistill.exporters.onnx.graph import convert
from edgedistill.exporters.onnx.packing import pack
from edgedistill.exporters.onnx.probing import first_divergence, largest_value, ties
from edgedistill.exporters.onnx.reading import read_back, verify
from edgedistill.exporters.onnx.running import OnnxRunner, load, require
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students import Signature

__all__ = [
    "EXTRA",
    "REQUIRES",
    "SUFFIX",
    "OnnxRunner",
    "audit",
    "export",
    "first_divergence",
    "largest_value",
    "load",
    "read_back",
    "ties",
    "verify",
]

SUFFIX = ".onnx"
# What the format stores exactly, as literals: the planner reads them without importing this module.
HOLDS = {
    "weights": ("int8 per channel", "int4 per channel", "int4 per group of 32", "int8 per group of 32"),
    "embeddings": ("int8 per channel", "int4 per channel", "int4 per group of 32", "int8 per group of 32"),
    "head": ("int8 per channel", "int4 per channel", "int4 per group of 32", "int8 per group of 32"),
    "activations": ("dynamic_int8", "static_int8", "float"),
}
# ONNX has no operator that quantizes the rows of a matrix at run time as LiteRT does.
COMPUTES = {"dynamic_int8": "float", "static_int8": "as_trained", "float": "as_trained"}
REQUIRES = ("onnx", "onnxruntime", "onnxscript")
EXTRA = "onnx"
PARITY = 1e-5
# The file and torch do the same in float32, in another order. Static ones are held to a step of the output instead:
# ONNX Runtime computes every group in integers, as torch, and what is between them is spelled so that all round alike.
_ROUNDING = Limits(1e-5, 1e-5)


def export(frozen: FrozenStudent, buckets: Sequence[int], out: Path) -> None:
    """Write `out`, read it back, compare it with the student number by number, and run it at every bucket.

    Raises:
        MissingDependency: if onnx, onnxscript or onnxruntime is not installed.
        StageError: if a bucket is impossible, or torch or the runtime refuses the model.
        VerificationError: if the file does not hold or compute what was trained. `out` appears only when all is well.
    """
    reason = frozen.scheme.misfit(HOLDS)
    if reason is not None:
        raise StageError(f"ONNX cannot hold this student: {reason}.")
    try:
        signatures = frozen.signatures(buckets)
    except ValueError as error:
        raise StageError(f"{frozen.family} student: {error}.") from None
    require()  # before the slow part
    partial = out.with_name(out.name + ".partial")
    try:
        partial.write_bytes(pack(convert(frozen, signatures), frozen))
        _prove(frozen, signatures, partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _prove(frozen: FrozenStudent, signatures: Sequence[Signature], path: Path) -> None:
    """Read the file back and compare it, then run it at the sizes of each of `signatures`.

    A static file runs twice: in integers, and as runtimes do that know no groups, where each must be as near as floats
    can be (`ties`).
    """
    verify(frozen, path)
    computes: Literal["as_trained", "float"] = (
        "float" if COMPUTES[frozen.scheme.activations] == "float" else "as_trained"
    )
    runner = _AtBuckets(load(path), {signature.name: signature for signature in signatures})
    executes(frozen, runner, _ROUNDING, computes, explain=lambda feeds: first_divergence(frozen, path, feeds))
    if frozen.scheme.activations == "static_int8":
        random = np.random.default_rng(0)
        ties(frozen, path, [frozen.sample(signature, random) for signature in signatures])


class _AtBuckets(NamedTuple):
    """A file of free sizes under the names and sizes of the student's own entry points."""

    runner: OnnxRunner
    signatures: Mapping[str, Signature]

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """As `OnnxRunner.run`."""
        (name,) = self.runner.signatures
        return self.runner.run(name, feeds)
