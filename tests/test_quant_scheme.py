"""What a scheme says of itself, before any format is asked."""

import pytest

from edgedistill.errors import SpecError
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid

GROUPS = WeightGrid(bits=4, granularity=PerGroup())
HOLDS = {"weights": ("int8 per channel", "int4 per group of 32"), "activations": ("dynamic_int8", "float")}


@pytest.mark.parametrize("part", ["weights", "head"])
def test_a_static_layer_with_groups_is_refused(part: str) -> None:
    with pytest.raises(SpecError, match=r"one scale for each channel"):
        QuantScheme.decode({part: GROUPS.model_dump(), "activations": "static_int8"}, "my.toml")


def test_a_static_scheme_may_look_up_rows_in_groups() -> None:
    assert QuantScheme(embeddings=GROUPS, activations="static_int8").embeddings == GROUPS


def test_a_format_says_what_it_cannot_hold_and_what_it_can() -> None:
    assert QuantScheme(weights=GROUPS).misfit(HOLDS) is None
    told = QuantScheme(weights=WeightGrid(bits=4)).misfit(HOLDS)
    assert told is not None
    assert "weights = 'int4 per channel'; it holds 'int8 per channel', 'int4 per group of 32'" in told
    exception = QuantScheme(layers={"layers.0.up.weight": WeightGrid(bits=4)}).misfit(HOLDS)
    assert exception is not None
    assert "layers.layers.0.up.weight = 'int4 per channel'" in exception


def test_a_combination_may_be_excluded_although_each_part_is_held() -> None:
    excludes = (({"weights": "int4 per group of 32", "activations": "float"}, "garbage"),)
    assert QuantScheme(weights=GROUPS).misfit(HOLDS, excludes) is None
    told = QuantScheme(weights=GROUPS, activations="float").misfit(HOLDS, excludes)
    assert told is not None
    assert told.endswith("garbage")
    one = QuantScheme(layers={"a.weight": GROUPS}, activations="float").misfit(HOLDS, excludes)
    assert one is not None
