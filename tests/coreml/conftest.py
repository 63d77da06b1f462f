"""A sound package that tests may damage."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from coreml_models import convert
from coreml_packages import FEEDS
from torch import nn


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 32),
        nn.LayerNorm(32),
    )
    return convert(module, FEEDS, tmp_path_factory.mktemp("sound") / "sound.mlpackage", outputs=["y"])


@pytest.fixture
def package(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy.mlpackage"))


@pytest.fixture
def in_time() -> Iterator[None]:
    """Fails a test that takes 20 s: what is hostile must not keep anybody busy."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 20
