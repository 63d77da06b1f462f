import subprocess
import sys

import pytest

import edgedistill


def test_every_public_name_is_there() -> None:
    for name in edgedistill.__all__:
        assert getattr(edgedistill, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        _ = edgedistill.biuld


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import edgedistill, sys; print([m for m in ('torch', 'numpy', 'pydantic', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
