"""Every shipped target, and what must hold for all of them."""

from __future__ import annotations

import pytest

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.runners import _remote, host
from edgedistill.specs import Target

NAMES = catalog.target_names()


def test_the_devices_a_user_would_name_are_there() -> None:
    wanted = {"pixel6", "pixel8", "pixel9", "galaxy_s24", "galaxy_a14", "iphone13", "iphone15", "rpi4", "rpi5", "host"}
    assert wanted <= set(NAMES)
    assert len(NAMES) >= 17


@pytest.fixture(params=NAMES)
def target(request: pytest.FixtureRequest) -> Target:
    return catalog.load_target(request.param)


def test_it_names_itself_and_its_sources(target: Target) -> None:
    assert target.name in NAMES
    assert target.title
    assert len(target.source) > 10


def test_its_formats_exist(target: Target) -> None:
    assert set(target.formats) <= set(catalog.plugins("exporters"))


def test_its_budget_limits_what_a_model_shares_and_stays_far_below_the_ram(target: Target) -> None:
    budget = target.budget
    assert budget.size_mb is not None
    assert budget.latency_p95_ms is not None
    assert budget.peak_memory_mb is not None
    assert budget.size_mb < budget.peak_memory_mb < target.ram_mb / 10


def test_one_core_is_not_faster_than_all_cores(target: Target) -> None:
    one, together = target.cpu.one_core_fp32_gflops, target.cpu.peak_fp32_gflops
    assert one is not None
    assert together is None or one < together


def test_energy_is_limited_only_where_it_can_be_metered(target: Target) -> None:
    if target.budget.energy_mj is not None:
        assert target.battery_wh is not None
        assert target.name.startswith("pixel")


def test_the_runner_follows_the_operating_system(target: Target) -> None:
    allowed = {"android": {"adb"}, "ios": {"ios"}, "linux": {"host", "ssh"}}
    assert target.runner in allowed[target.os]
    assert (target.runner == "host") == (target.name == "host")


def test_a_figure_that_the_table_marks_as_recalled_says_so() -> None:
    assert "recalled" in catalog.load_target("galaxy_a14").source
    assert "estimate" in catalog.load_target("pixel8").source


def test_the_format_that_is_gated_is_one_that_its_runner_times(target: Target) -> None:
    """A Core ML file of ours needs iOS 17."""
    times = {"host": host.NEEDS, "adb": _remote.PACKAGES, "ssh": _remote.PACKAGES, "ios": ("coreml",)}
    assert target.formats[0] in times[target.runner]
    if "coreml" in target.formats:
        assert int(target.os_version_min) >= 17


@pytest.mark.parametrize("value", ["8MB", "8", True, float("nan"), float("inf"), 0, -1])
def test_a_limit_is_a_number_above_zero(value: object) -> None:
    given = catalog.load_target("pixel8").model_dump()
    with pytest.raises(SpecError, match=r"budget\.size_mb = "):
        Target.decode({**given, "budget": {"size_mb": value}}, "here")
