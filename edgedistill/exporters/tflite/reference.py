"""Files that the ledger compares a build with: a float .tflite, and Google's own post-training int8 of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters._quiet import silenced
from edgedistill.exporters.tflite.graph import add_signatures
from edgedistill.exporters.tflite.running import load
from edgedistill.students import Port, Signature
from edgedistill.tasks.text_classification import run_file

# A float file sums in another order than torch; more than this, relative to the largest logit, is a wrong graph.
_LIMIT = 1e-3


def export_float(model: nn.Module, buckets: Sequence[int], samples: Sequence[Sequence[int]], out: Path) -> None:
    """A float32 .tflite of any model that answers `Outputs`, with the signatures of an exported student.

    `samples` are token ids of real texts, each within the longest bucket; the file must answer them as torch does.

    Raises:
        StageError: if the converter refuses the model.
        VerificationError: if the file computes something else. A reference that is wrong would flatter the student.
    """
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    with silenced():
        import litert_torch
    try:
        with silenced(), torch.no_grad():
            add_signatures(litert_torch, model.eval(), _signatures(buckets)).convert().export(str(out))
    except Exception as error:  # the converter raises errors of torch, jax, MLIR and plain builtins alike
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StageError(f"litert-torch cannot convert the float model ({type(error).__name__}): {first}.") from error
    runner = load(out)
    for ids in samples:
        row = torch.tensor([list(ids)])
        with torch.no_grad():
            expected = model(row, torch.ones_like(row)).logits[0].numpy()
        away = float(np.abs(run_file(runner, ids) - expected).max())
        if away > _LIMIT * max(1.0, float(np.abs(expected).max())):
            raise VerificationError(f"{out.name}: the float reference answers {away:.3g} away from torch.")


def _signatures(buckets: Sequence[int]) -> list[Signature]:
    """Those of an exported text encoder, whatever the model behind them."""
    out = (Port("logits", (1, -1), "float32"),)
    return [
        Signature(f"length_{n}", (Port("input_ids", (1, n), "int32"), Port("attention_mask", (1, n), "int32")), out)
        for n in buckets
    ]


def quantize_after_training(source: Path, out: Path) -> None:
    """Dynamic-range int8 of a float file by ai-edge-quantizer, its standard recipe: what a user gets without QAT."""
    with silenced():
        from ai_edge_litert.tools import flatbuffer_utils
        from ai_edge_quantizer import quantizer, recipe

        work = quantizer.Quantizer(str(source), recipe.dynamic_wi8_afp32())
        work.quantize().export_model(str(out), overwrite=True)
        # From 256 KiB on the library puts weights behind the flatbuffer, by offset; a file for phones is in one piece.
        flatbuffer_utils.write_model(flatbuffer_utils.read_model(str(out)), str(out))
