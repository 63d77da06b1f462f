"""Run a model over rows once and keep what it answered, by sample id: nothing is ever matched by position."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgedistill.data.tensors import Outputs
from edgedistill.errors import StageError
from edgedistill.specs import Progress


@dataclass(frozen=True)
class Recorded:
    """A model's answers: row n of both tensors belongs to `ids[n]`."""

    ids: tuple[str, ...]
    logits: Float[Tensor, "rows classes"]
    pooled: Float[Tensor, "rows width"]

    def of(self, ids: Sequence[str]) -> Outputs:
        """The answers for `ids`, in their order.

        Raises:
            StageError: if an id was not recorded.
        """
        index = {key: position for position, key in enumerate(self.ids)}
        unknown = [key for key in ids if key not in index]
        if unknown:
            raise StageError(f"the teacher's record has no answer for {len(unknown)} rows, the first is {unknown[0]}.")
        order = torch.tensor([index[key] for key in ids], dtype=torch.long)
        return Outputs(self.logits[order], self.pooled[order])


@torch.no_grad()
def answers(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    collate: Callable[[Sequence[Sequence[int]]], tuple[Tensor, ...]],
    progress: Progress,
    batch_size: int = 64,
) -> Outputs:
    """The model's answers in the order of `sequences`; `collate` is the task's, and makes the model's arguments.

    Batches hold samples of like length, so little of them is padding.
    """
    model.eval()
    order = np.argsort([len(item) for item in sequences], kind="stable")
    logits, pooled = [], []
    for start in range(0, len(order), batch_size):
        batch = [sequences[i] for i in order[start : start + batch_size]]
        out = model(*collate(batch))
        logits.append(out.logits)
        pooled.append(out.pooled)
        progress.advance(len(batch))
    back = torch.from_numpy(np.argsort(order, kind="stable"))
    return Outputs(torch.cat(logits)[back], torch.cat(pooled)[back])


def save(folder: Path, recorded: Recorded) -> None:
    """Write `record.safetensors` and the ids."""
    save_file(
        {"logits": recorded.logits.contiguous(), "pooled": recorded.pooled.contiguous()}, folder / "record.safetensors"
    )
    (folder / "ids.json").write_text(json.dumps(list(recorded.ids)), encoding="utf-8")


def load(folder: Path) -> Recorded:
    """Read what `save` wrote."""
    tensors = load_file(folder / "record.safetensors")
    ids = tuple(json.loads((folder / "ids.json").read_text(encoding="utf-8")))
    return Recorded(ids, tensors["logits"], tensors["pooled"])
