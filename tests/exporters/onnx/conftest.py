"""Files that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_students import BUCKETS, CASES, Made, student

from edgedistill.exporters import onnx as exporter
from edgedistill.quant.frozen import FrozenStudent


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`made("int8")`: the student of a case and its file, exported once."""
    folder, known = tmp_path_factory.mktemp("onnx"), {}

    def make(name: str) -> tuple[FrozenStudent, Path]:
        if name not in known:
            frozen, path = student(*CASES[name]), folder / f"{name.replace(' ', '_')}.onnx"
            exporter.export(frozen, BUCKETS, path)
            known[name] = frozen, path
        return known[name]

    return make
