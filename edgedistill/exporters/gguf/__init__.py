"""GGUF, the format of llama.cpp: language models, and text encoders with a classifier, codes exactly as trained.

A decoder has a signature `length_N` per length bucket from int32 `input_ids` [1, N] to float32 `logits`
[1, N, vocabulary]; an encoder also takes `attention_mask` and gives `logits` [1, classes]. llama.cpp itself takes texts
of any length up to the longest; the buckets are what was asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from edgedistill.errors import StageError
from edgedistill.exporters._proof import Explain, Limits, executes
from edgedistill.exporters.gguf.audit import audit
from edgedistill.exporters.gguf.probing import first_divergence, largest_value
from edgedistill.exporters.gguf.reading import read_back, verify
from edgedistill.exporters.gguf.requantizing import requantize
from edgedistill.exporters.gguf.running import GgufRunner, load, open_file
from edgedistill.exporters.gguf.tokens import check_tokens
from edgedistill.exporters.gguf.writing import layout_of, write
from edgedistill.quant.frozen import FrozenStudent

__all__ = [
    "EXTRA",
    "REQUIRES",
    "SUFFIX",
    "GgufRunner",
    "audit",
    "export",
    "first_divergence",
    "largest_value",
    "load",
    "read_back",
    "requantize",
    "verify",
]

SUFFIX = ".gguf"
# What the format stores exactly, as literals: the planner reads them without importing this module. 8 bits are Q8_0 and
# 4 bits Q4_0; both have a scale for 32 neighbours, and a channel's scale is repeated in its row.
HOLDS = {
    "weights": ("int8 per channel", "int8 per group of 32", "int4 per channel", "int4 per group of 32"),
    "embeddings": ("int8 per channel", "int8 per group of 32", "int4 per channel", "int4 per group of 32"),
    "head": ("int8 per channel", "int8 per group of 32", "int4 per channel", "int4 per group of 32"),
    "activations": ("dynamic_int8", "float"),
}
# llama.cpp rounds activations to Q8_0 in its own way, which is neither; the weights are the trained ones.
COMPUTES = {"dynamic_int8": "float", "float": "float"}
REQUIRES = ("gguf", "llama_cpp")
EXTRA = "gguf"
# The rounding of activations, which grows with depth: 5e-3 for a trained BERT of 2 layers, 5e-2 for 30 of SmolLM2-135M.
PARITY = 0.1
ROW_MULTIPLE = 32
"""Every row of a quantized tensor is a multiple of this wide: a student of another width cannot be exported."""

_LONGEST_PROOF = 256  # tokens; the logits of more would take long, and all buckets are one graph
# The float32 twin sums in another order: 2e-6 of the largest logit after 30 layers of SmolLM2-135M. Where there is a
# GELU, llama.cpp looks it up in a table of 65536 fp16 numbers, and for a BERT that table holds the tanh approximation
# of the exact function: 5e-4 and 1e-3 seen (tests/exporters/gguf shows that this is all of it).
_TWIN_LIMITS = {"gemma3": Limits(2e-3, 1e-2), "bert": Limits(5e-3, 2e-2)}
_TWIN_LIMIT = Limits(1e-4, 1e-3)
# The file itself, whose activations llama.cpp rounds to Q8_0 (5e-2 and 8e-2 seen with SmolLM2-135M): this passes that
# and nothing that is broken. That it has the trained numbers is shown by comparing them, the graph by the twin.
_LIMITS = Limits(0.15, 0.4)


def export(frozen: FrozenStudent, buckets: Sequence[int], out: Path) -> None:
    """Write `out`, read it back, compare it with the student number by number, and run it and its float32 twin.

    Raises:
        MissingDependency: if gguf or llama-cpp-python is not installed.
        StageError: if a bucket is impossible, the student cannot be held, or llama.cpp refuses the file.
        VerificationError: if the file does not hold or compute what was trained. `out` appears only when all is well.
    """
    reason = frozen.scheme.misfit(HOLDS)
    if reason is not None:
        raise StageError(f"GGUF cannot hold this student: {reason}.")
    layout_of(frozen)  # what llama.cpp has no architecture for is refused first
    try:
        lengths = [signature.inputs[0].shape[1] for signature in frozen.signatures(buckets)]
    except ValueError as error:
        raise StageError(f"{frozen.family} student: {error}.") from None
    partial = out.with_name(out.name + ".partial")
    try:
        write(frozen, lengths, partial)
        _prove(frozen, lengths, partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _prove(frozen: FrozenStudent, lengths: Sequence[int], path: Path) -> None:
    """Read the file back and compare it, then run it and its float32 twin, which lies beside it for that time."""
    verify(frozen, path)
    proof = [min(lengths[-1], _LONGEST_PROOF)]
    twin, limits = path.with_name(path.name + ".float"), _TWIN_LIMITS.get(layout_of(frozen).architecture, _TWIN_LIMIT)
    module = frozen.to_module("float")

    def explain(path: Path) -> Explain:
        return lambda feeds: first_divergence(frozen, path, feeds)

    try:
        write(frozen, proof, twin, exact=False)
        with contextlib.closing(open_file(twin, exact=True)) as runner:
            executes(frozen, runner, limits, module, explain=explain(twin))
    finally:
        twin.unlink(missing_ok=True)
    with contextlib.closing(open_file(path, lengths=proof)) as runner:
        executes(frozen, runner, _LIMITS, module, explain=explain(path))
        check_tokens(frozen.task, runner.tokenize)
