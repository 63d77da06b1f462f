"""What tests of several modules share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from shared_conversions import Shared, list_operators_once
from tflite_forms import FORMS, Made, student

from edgedistill.exporters import tflite


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    """The tests here convert some hundred networks; `test_contract_schemes.py` shows that no byte depends on it."""
    with pytest.MonkeyPatch.context() as patch:
        list_operators_once(patch)
        yield


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


@pytest.fixture(scope="module")
def forms(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The student and the file of a form of weights in a .tflite, exported once."""
    folder, known = tmp_path_factory.mktemp("forms"), dict[str, Made]()

    def made(form: str) -> Made:
        if form not in known:
            frozen, path = student(*FORMS[form][:2]), folder / f"{form.replace(' ', '_')}.tflite"
            tflite.export(frozen, FORMS[form].buckets, path)
            known[form] = frozen, path
        return known[form]

    return made


@pytest.fixture(params=list(FORMS))
def form(forms: Callable[[str], Made], request: pytest.FixtureRequest) -> Made:
    """Each form in turn."""
    return forms(request.param)
