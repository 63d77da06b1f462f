"""One bundle that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest
from litertlm_students import BUCKETS, decoder

from edgedistill.exporters import litertlm
from edgedistill.quant import FrozenStudent


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[FrozenStudent, Path]:
    """A Gemma 3 with local layers, int4 in groups, whose tokenizer begins texts with a token; and its bundle."""
    frozen, path = decoder("gemma3"), tmp_path_factory.mktemp("litertlm") / "gemma.litertlm"
    litertlm.export(frozen, BUCKETS, path)
    return frozen, path
