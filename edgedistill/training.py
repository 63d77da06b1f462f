"""The one training loop. What varies between a teacher's fit, distillation and quantization-aware distillation is data:
the model, the objective and the schedule.

Every random choice is a function of (seed, step), and a checkpoint holds weights, average and optimizer state, so a run
that is killed and continued ends with the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgedistill.errors import StageError
from edgedistill.specs import Progress
from edgedistill.store import CHECKPOINT

CHECKPOINT_EVERY_S = 20.0


@dataclass(frozen=True)
class Recipe:
    """The schedule of one run: AdamW with a clipped gradient, `steps` updates, optional weight average."""

    steps: int
    learning_rate: float
    schedule: str
    weight_decay: float
    gradient_clip: float
    ema_decay: float = 0.0


Objective = Callable[[int], Tensor]
"""The loss of the batch of step n; called with gradients on, exactly once per step."""


def train(
    model: nn.Module,
    objective: Objective,
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    before_step: Callable[[int], None] | None = None,
) -> list[tuple[int, float]]:
    """Train `model` in place and return its curve of (step, mean loss since the last point).

    `folder` is the stage's partial folder: a checkpoint found there is continued. With `ema_decay` the model ends with
    the average of its weights. `before_step(n)` is called before step n, and again for all earlier ones' effects by
    the caller's own logic (it must depend on n alone).

    Raises:
        StageError: if the loss stops being finite.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = _adamw(model, recipe)
    average = {name: p.detach().clone() for name, p in trained.items()} if recipe.ema_decay else {}
    state = _Checkpoint(folder / CHECKPOINT, model, optimizer, average)
    first, curve = state.restore()
    progress.advance(first)
    every = max(1, recipe.steps // 100)
    summed, counted, saved = 0.0, 0, time.monotonic()
    model.train()
    for step in range(first, recipe.steps):
        if before_step:
            before_step(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        loss = objective(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(list(trained.values()), recipe.gradient_clip)
        optimizer.step()
        _update(average, trained, recipe.ema_decay, step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise StageError(f"the loss is {value} at step {step}; lower the learning rate ({recipe.learning_rate:g}).")
        summed, counted = summed + value, counted + 1
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            curve.append((step + 1, round(summed / counted, 6)))
            summed, counted = 0.0, 0
            # only here: a checkpoint between two points of the curve would lose the running mean
            if time.monotonic() - saved > CHECKPOINT_EVERY_S and step + 1 < recipe.steps:
                state.save(step + 1, curve)
                saved = time.monotonic()
        progress.advance(1, loss=value)
    with torch.no_grad():
        for name, value_ in average.items():
            trained[name].copy_(value_)
    model.eval()
    return curve


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of `step`, a pure function of it.

    `one_cycle`: 10 % linear warm-up, then a cosine to 0 (Smith 2018, with a cosine as in torch's OneCycleLR).
    `linear`: 10 % linear warm-up, then a line to 0. `constant`: constant.
    """
    if recipe.schedule == "constant":
        return recipe.learning_rate
    warm = max(1, round(0.1 * recipe.steps))
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps - warm)
    share = 1 - done if recipe.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return recipe.learning_rate * share


def generator(*parts: int) -> torch.Generator:
    """A random generator that depends on its parts alone, e.g. (seed, stage, step)."""
    # hashed, so that neighbouring parts give unrelated streams: torch looks at no more than 32 bits of a seed
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def _adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) are not decayed, as is usual for transformers."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # 0.98: a memory of some fifty steps, as a stage may have only a few hundred
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def _update(average: dict[str, Tensor], trained: Mapping[str, Tensor], decay: float, step: int) -> None:
    """theta_bar <- d·theta_bar + (1 - d)·theta, with d growing from 0 so that the start does not count for ever."""
    if not average:
        return
    decay = min(decay, (1 + step) / (10 + step))
    names = list(average)
    torch._foreach_lerp_([average[n] for n in names], [trained[n] for n in names], 1 - decay)


class _Checkpoint:
    """Weights, average and optimizer state of a run, written as one folder that is swapped in whole."""

    def __init__(
        self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]
    ) -> None:
        self.folder, self.model, self.optimizer, self.average = folder, model, optimizer, average

    def save(self, step: int, curve: list[tuple[int, float]]) -> None:
        """Write the state after `step` updates."""
        tensors = {f"model/{k}": v.contiguous() for k, v in self.model.state_dict().items()}
        tensors |= {f"average/{k}": v.contiguous() for k, v in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": v.contiguous() for k, v in state.items()}
        self.folder.mkdir(exist_ok=True)
        draft = self.folder / "draft.safetensors"
        # one file, one rename: weights and step can never belong to different moments
        save_file(tensors, draft, metadata={"step": str(step), "curve": json.dumps(curve)})
        draft.replace(self.folder / "state.safetensors")

    def restore(self) -> tuple[int, list[tuple[int, float]]]:
        """Load the last checkpoint into model, average and optimizer; (0, []) when there is none.

        One that a power loss cut short counts as none: the work is done again, to the same bytes.
        """
        path = self.folder / "state.safetensors"
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata()
            tensors = load_file(path)
        except (FileNotFoundError, SafetensorError):
            return 0, []
        part = {
            prefix: {k.removeprefix(f"{prefix}/"): v for k, v in tensors.items() if k.startswith(f"{prefix}/")}
            for prefix in ("model", "average", "optimizer")
        }
        self.model.load_state_dict(part["model"])
        for name, value in part["average"].items():
            self.average[name].copy_(value)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part["optimizer"].items():
            index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        return int(facts["step"]), [(int(a), float(b)) for a, b in json.loads(facts["curve"])]
