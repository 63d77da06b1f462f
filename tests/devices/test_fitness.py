"""Which states of a device are fit: each reason alone, at both sides of its limit, and what is not told."""

from __future__ import annotations

import pytest

from edgedistill.errors import SpecError
from edgedistill.runners import How
from edgedistill.runners._fitness import OTHERS_MAX, STEAL_MAX, disturbed, lasting, passing
from edgedistill.runners._program.__main__ import others
from edgedistill.specs import Conditions


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"battery_percent": 20.0}, ""),
        ({"battery_percent": 19.0}, "battery at 19 %"),
        ({"low_power_mode": True}, "battery saver"),
        ({"governor": "powersave", "frequency_mhz": 600.0}, "governor is powersave"),
        ({"governor": "powersave", "frequency_mhz": 3200.0}, ""),  # what Intel's driver calls its ordinary one
        ({"governor": "schedutil", "frequency_mhz": 600.0}, ""),  # it rises with work
        ({}, ""),
    ],
)
def test_what_a_person_has_to_change(state: dict[str, object], told: str) -> None:
    reasons = lasting(Conditions(**state), How())  # type: ignore[arg-type]
    assert len(reasons) == bool(told)
    assert told in "".join(reasons)


def test_heat_passes() -> None:
    assert passing(Conditions()) == passing(Conditions(thermal_status=0)) == []
    assert "thermal status 1" in passing(Conditions(thermal_status=1))[0]


@pytest.mark.parametrize(("name", "limit"), [("others_share", OTHERS_MAX), ("steal_share", STEAL_MAX)])
def test_work_beside_a_launch(name: str, limit: float) -> None:
    assert disturbed({"shares": {name: limit}}) == disturbed({"shares": {name: None}}) == disturbed({}) == []
    assert len(disturbed({"shares": {name: limit + 0.01}})) == 1


def test_shares_are_those_of_the_others() -> None:
    """Two cores for ten seconds: one is ours, half of the other somebody's, a tenth of all the hypervisor's."""
    before = {"all": 100.0, "busy": 50.0, "steal": 1.0, "own": 3.0}
    after = {"all": 120.0, "busy": 65.0, "steal": 3.0, "own": 13.0}
    assert others(before, after) == {"others_share": pytest.approx(0.25), "steal_share": pytest.approx(0.1)}
    unknown = {"others_share": None, "steal_share": None}
    assert others(None, after) == others(before, None) == others(before, before | {"all": 100.1}) == unknown


def test_a_word_that_is_no_policy_is_refused() -> None:
    with pytest.raises(SpecError, match="one of record, mark, refuse"):
        How(unfit="perhaps")
