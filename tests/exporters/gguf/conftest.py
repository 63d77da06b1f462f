"""Files that the tests of this folder share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf_students import BUCKETS, student

from edgedistill.exporters import gguf
from edgedistill.quant import FrozenStudent


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[FrozenStudent, Path]]:
    """`made("qwen2", "int4")`: a student and its file, exported once."""
    folder, known = tmp_path_factory.mktemp("gguf"), {}

    def make(name: str, scheme: str = "mixed") -> tuple[FrozenStudent, Path]:
        if (name, scheme) not in known:
            frozen, path = student(name, scheme), folder / f"{name}_{scheme.replace(' ', '_')}.gguf"
            gguf.export(frozen, BUCKETS, path)
            known[name, scheme] = frozen, path
        return known[name, scheme]

    return make


@pytest.fixture
def runner(made: Any) -> Iterator[Any]:
    with contextlib.closing(gguf.load(made("llama")[1])) as found:
        yield found
