"""Files that the ledger compares a build with: a float .tflite, and Google's own post-training int8 of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from edgedistill.errors import StageError
from edgedistill.exporters.tflite.graph import _Signature, silenced


def export_float(model: nn.Module, buckets: Sequence[int], out: Path) -> None:
    """A float32 .tflite of any model that answers `Outputs`, with the signatures of an exported student.

    Raises:
        StageError: if the converter refuses the model.
    """
    import litert_torch

    wrapped = _Signature(model).eval()
    try:
        with silenced(), torch.no_grad():
            signatures = litert_torch
            for length in buckets:
                ones = torch.ones(1, length, dtype=torch.int32)
                sample = {"input_ids": ones, "attention_mask": ones}
                signatures = signatures.signature(f"length_{length}", wrapped, sample_kwargs=sample)
            signatures.convert().export(str(out))
    except Exception as error:  # the converter raises errors of torch, jax, MLIR and plain builtins alike
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StageError(f"litert-torch cannot convert the float model ({type(error).__name__}): {first}.") from error


def quantize_after_training(source: Path, out: Path) -> None:
    """Dynamic-range int8 of a float file by ai-edge-quantizer, its standard recipe: what a user gets without QAT."""
    with silenced():
        from ai_edge_quantizer import quantizer, recipe

        work = quantizer.Quantizer(str(source), recipe.dynamic_wi8_afp32())
        work.quantize().export_model(str(out), overwrite=True)
