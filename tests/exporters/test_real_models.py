"""Published models at their real size, in every format of their family and the main schemes; minutes each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def _script() -> ModuleType:
    """`bench/real_models.py`, which records the same figures; it imports its neighbours by name."""
    sys.path.append(str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("real_models", BENCH / "real_models.py")
        assert spec is not None
        assert spec.loader is not None
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        return script
    finally:
        sys.path.remove(str(BENCH))


real_models: Any = _script()


def test_there_is_a_case_for_every_model_and_every_format_of_its_family() -> None:
    found = {(model, name) for model, name, _ in real_models.cases()}
    assert {model for model, _ in found} == set(real_models.WANTED)
    for model in real_models.FAMILIES:
        assert {name for one, name in found if one == model} == set(real_models.formats_of(model))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "format_name", "scheme"), real_models.cases())
def test_a_published_model_is_stored_exactly_and_computed(model: str, format_name: str, scheme: str) -> None:
    """In a process of its own, so that its memory is given back."""
    try:
        found = real_models.run(model, format_name, scheme)
    except real_models.Missing as error:
        pytest.skip(str(error))
    refusal = real_models.REFUSED.get((model, format_name, scheme))
    if refusal is not None:
        assert found.get("refused", "no file should have been written").startswith(refusal)
        return
    assert "refused" not in found, found["refused"]
    assert found["codes"] > 3_000_000
    assert (found["missing"], found["codes_off"], found["scales_off"]) == (0, 0, 0)
    assert found["median"] <= found["limit"]
    if found["steps"] is not None and format_name not in real_models.HALF:
        assert found["steps"] <= 1
    assert found["agree"] >= 0.9
