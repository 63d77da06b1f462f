"""A regression of a moment, for tests of the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgedistill import training
from edgedistill.specs import Silent
from edgedistill.training import Recipe, generator, train

RECIPE = Recipe(steps=40, learning_rate=1e-2, schedule="one_cycle", weight_decay=0.05, gradient_clip=1.0, ema_decay=0.9)
LONG = replace(RECIPE, steps=1500)


class Net(nn.Module):
    """Matrices, vectors, a buffer that training moves and a parameter that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.norm(self.first(x))))
        return out


def net() -> Net:
    torch.manual_seed(5)
    return Net()


def regression(model: nn.Module, fail_at: int | None = None) -> Callable[[int], Tensor]:
    """Batches are a function of the step; raises at step `fail_at`, as a killed process would stop there."""

    def objective(step: int) -> Tensor:
        if step == fail_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 6, generator=generator(1, step))
        return (model(x) - torch.stack([x.sum(1), x[:, 0] * x[:, 1]], 1)).square().mean()

    return objective


class Watch(Silent):
    """Remembers how many steps were reported."""

    def __init__(self) -> None:
        self.steps, self.losses = 0, []  # type: ignore[var-annotated]

    def advance(self, units: int = 1, **facts: float) -> None:
        self.steps += units
        self.losses += facts.values()


@pytest.fixture
def checkpoint_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_S", 0)


def uncut(folder: Path, recipe: Recipe = RECIPE) -> tuple[Net, list[tuple[int, float]]]:
    model = net()
    return model, train(model, regression(model), recipe, folder, Silent())


def assert_same(one: nn.Module, two: nn.Module) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
