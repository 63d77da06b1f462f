"""A profile small enough to reason about, written as a user would write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from edgedistill.specs import Profile

SMALL: dict[str, int | float] = {"layers": 1, "width": 64, "heads": 2, "ffn": 128}
MEDIUM: dict[str, int | float] = {"layers": 2, "width": 128, "heads": 4, "ffn": 512}
LARGE: dict[str, int | float] = {"layers": 4, "width": 256, "heads": 8, "ffn": 1024}


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


BASE: dict[str, Any] = {
    "name": "test",
    "teacher": {"sources": [{"kind": "folder", "name": "./teacher"}]},
    "data": {"train": "./rows.jsonl"},
    "student": {"vocabulary": 2000, "buckets": [16, 32], "candidates": [SMALL, MEDIUM, LARGE]},
    "stages": [
        {"name": "warm_up", "epochs": 4, "learning_rate": 1e-3, "losses": [{"loss": "soft_kl"}]},
        {
            "name": "quantized",
            "epochs": 1,
            "learning_rate": 1e-4,
            "fake_quant": True,
            "losses": [{"loss": "soft_kl", "params": {"temperature": 4.0}}, {"loss": "cross_entropy", "weight": 0.3}],
        },
    ],
}


@pytest.fixture
def profile() -> Callable[..., Profile]:
    """`profile(budget={"size_mb": 1})`: the profile above with changes merged in."""

    def make(**changes: Any) -> Profile:
        return Profile.decode(_merge(BASE, changes), where="test profile")

    return make
