"""A small BERT whose scales are held: made, and trained for some steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgedistill import training
from edgedistill.quant import scales as scales_module
from edgedistill.quant.fake import freeze_observers, prepare
from edgedistill.quant.scales import FittedScales, LearnedScales, ScaleRule
from edgedistill.specs import Silent
from edgedistill.specs.quant import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import bert
from edgedistill.students.bert.module import BertClassifier, build

CONFIG = bert.Config(layers=1, width=64, heads=4, ffn=96, vocabulary=150, max_length=12, classes=5)
TENSORS = bert.tensors(CONFIG)
CHANNELS, GROUPS = WeightGrid(bits=4), WeightGrid(bits=4, granularity=PerGroup())
BY_CHANNEL = QuantScheme(weights=CHANNELS, embeddings=CHANNELS)
BY_GROUP = QuantScheme(weights=GROUPS, embeddings=GROUPS, head=GROUPS, scale_dtype="bf16")
EVERY = 3
HELD: tuple[ScaleRule, ...] = ("mse", "learned")


@pytest.fixture
def fit_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of 20 steps see several fits."""
    monkeypatch.setattr(scales_module, "FIT_EVERY", EVERY)


def student(scheme: QuantScheme, rule: ScaleRule, seed: int = 0) -> BertClassifier:
    torch.manual_seed(seed)
    model = build(CONFIG)
    assert prepare(model, scheme, TENSORS, rule) is model
    return model


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, CONFIG.vocabulary, (8, CONFIG.max_length), generator=generator)
    return ids, torch.ones_like(ids)


def loss_of(model: BertClassifier, step: int = 0) -> Tensor:
    ids, mask = batch(step)
    return nn.functional.cross_entropy(model(ids, mask).logits, ids[:, 0] % CONFIG.classes)


def train(model: BertClassifier, folder: Path, steps: int = 20, stop: int | None = None, **changes: Any) -> None:
    recipe = training.Recipe(
        **({"steps": steps, "learning_rate": 5e-3, "schedule": "linear", "weight_decay": 0.01} | changes),
        gradient_clip=1.0,
        ema_decay=0.5,
    )

    def objective(step: int) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        return loss_of(model, step % 2)

    def before_step(step: int) -> None:
        if step >= 0.8 * steps:
            freeze_observers(model)

    training.train(model, objective, recipe, folder, Silent(), before_step)


def holders(model: nn.Module) -> Iterator[FittedScales | LearnedScales]:
    return (module for module in model.modules() if isinstance(module, FittedScales | LearnedScales))
