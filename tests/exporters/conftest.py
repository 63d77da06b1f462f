"""What tests of several formats share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from shared_conversions import Shared


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Conversions of equal graphs are done once for all processes of a run, in the modules that ask for it."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "conversions"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        found = Shared(folder)
        found.install(patch)
        yield found
