"""Packages that the tests of this folder share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from coreml_students import BUCKETS, MID, SCHEMES, Converted, grid, student

from edgedistill.exporters import coreml
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.specs.quant import QuantScheme


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coreml")


@pytest.fixture(scope="session", params=SCHEMES)
def exported(request: pytest.FixtureRequest, folder: Path) -> tuple[FrozenStudent, Path]:
    """A package of each scheme."""
    frozen, path = student("bert", MID, SCHEMES[request.param]), folder / f"{request.param}.mlpackage"
    coreml.export(frozen, BUCKETS, path)
    return frozen, path


@pytest.fixture(scope="session", params=["int8 per channel", "static"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(student("bert", MID, SCHEMES[request.param]), tmp_path_factory.mktemp("converted"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> tuple[FrozenStudent, Path]:
    """A package that may be spoiled, and its student."""
    frozen, path = student("bert", MID, SCHEMES["int8 per channel"]), folder / "int8 per channel.mlpackage"
    if not path.exists():
        coreml.export(frozen, BUCKETS, path)
    return frozen, Path(shutil.copytree(path, tmp_path / "copy.mlpackage"))


@pytest.fixture(scope="session")
def decoder(folder: Path) -> tuple[FrozenStudent, Path]:
    """A language model whose head is its embedding."""
    from edgedistill.students import llama

    frozen = student("llama", llama.TINY, QuantScheme(weights=grid(4, groups=True), activations="float"))
    coreml.export(frozen, [12], folder / "decoder.mlpackage")
    return frozen, folder / "decoder.mlpackage"
