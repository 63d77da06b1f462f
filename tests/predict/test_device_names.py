"""Devices by name: the one that is meant, or an error; never another one with a similar name."""

from __future__ import annotations

import pytest

from edgedistill.errors import SpecError
from edgedistill.predict import DeviceSpecs, LlmWorkload, Workload, predict, tables
from edgedistill.predict.devices import known_names, of_name, resolve

WORK = Workload(gmacs=1.0, params_m=4.0)


def test_every_name_of_the_tables_is_the_device_of_its_rows() -> None:
    """Brackets tell two phones called Xiaomi POCO apart, of which one has another maker's chip."""
    for name in known_names():
        device = resolve(name)
        if of_name(name).cores or of_name(name).soc != name.lower():
            assert device.soc == of_name(name).soc or name == device.name, name


@pytest.mark.parametrize("name", ["Xiaomi POCO (myron)", "Xiaomi POCO (klee)", "Samsung Galaxy S23"])
def test_a_measured_decode_rate_is_that_of_its_own_phone(name: str) -> None:
    rows = [row for row in tables.rows("llm.csv") if row["device"] == name and row["model"] == "qwen2.5-1.5b"]
    assert rows
    for row in rows:
        work = LlmWorkload(model=row["model"], quant=row["quant"], backend=row["unit"], runtime=row["runtime"])
        assert predict(name, work).median == pytest.approx(float(row["tg_tps"])), row


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("Galaxy S24 Ultra (Snapdragon)", "galaxy_s24_ultra"),
        ("Galaxy S23 (Snapdragon 8 Gen 2 for Galaxy)", "galaxy_s23"),
        ("Pixel 8 (Tensor G3)", "pixel8"),
        ("Samsung Galaxy A14", "galaxy_a14"),
        ("HOST", "host"),
        ("Moto_G_Power_2024", "moto_g_power_2024"),
        ("Qualcomm® Snapdragon™ 8 Gen 3 for Galaxy", "Snapdragon 8 Gen 3"),
        ("snapdragon 8gen3", "Snapdragon 8 Gen 3"),
        ("SD 8 Gen 2", "Snapdragon 8 Gen 2"),
    ],
)
def test_a_name_as_people_write_it(written: str, same: str) -> None:
    assert predict(written, WORK).median == pytest.approx(predict(same, WORK).median, rel=1e-3)


def test_the_variant_with_another_chip_is_not_answered_with_the_one_that_is_known() -> None:
    with pytest.raises(SpecError, match=r"'snapdragon 8 gen 3', and nothing tells of the one with 'Exynos'"):
        predict("Galaxy S24 (Exynos)", WORK)
    known, other = resolve("Galaxy S24"), resolve("Galaxy S24 (Exynos 2400)")
    assert other.soc == "exynos 2400" != known.soc
    assert other.battery_wh is None  # not stated of this one
    assert predict("Galaxy S24 (Exynos 2400)", WORK).missing


def test_a_name_of_two_devices_with_different_chips_is_refused_with_both() -> None:
    with pytest.raises(SpecError, match=r"may be 'Xiaomi POCO \(klee\)' or 'Xiaomi POCO \(myron\)'"):
        predict("Xiaomi POCO", WORK)


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        ({"soc": "Snapdragon 8 Gem 3"}, "soc 'Snapdragon 8 Gem 3': no table has it"),
        ({"cpu": "2xZ99@3.0 + 4xA55@2.0"}, "core z99: not known, taken as one of 16 operations a cycle"),
    ],
)
def test_what_is_stated_and_says_nothing_is_flagged(facts: dict[str, str], note: str) -> None:
    for work in (WORK, LlmWorkload(params_b=1.0)):
        assert any(flag.startswith(note) for flag in predict(DeviceSpecs(**facts), work).flags)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "facts",
    [{"soc": "SM8650-AB"}, {"soc": "Exynos 2400"}, {"cpu": "1xCortex-X4@3.3 + 4xKryo@2.0"}, {"cpu": "2xP@3.2"}, {}],
)
def test_what_is_known_is_not_flagged(facts: dict[str, str]) -> None:
    flags = predict(DeviceSpecs(**facts), WORK).flags  # type: ignore[arg-type]
    assert not any(flag.startswith(("soc", "core")) for flag in flags)
