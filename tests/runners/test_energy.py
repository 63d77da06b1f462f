"""Energy from counters that were read around the samples: told only where it was metered."""

from __future__ import annotations

from typing import Any

import pytest

from edgedistill.runners._energy import energy_of

RAIL = "/sys/bus/iio/devices/iio:device0/energy_value"
BATTERY = "/sys/class/power_supply/battery"


def answer(before: dict[str, str], after: dict[str, str], samples: int = 100) -> dict[str, Any]:
    return {"samples_ns": [1] * samples, "meters": {"before": before, "after": after}}


def rails(time_ms: int, **energy_uj: int) -> str:
    return f"t={time_ms}\n" + "".join(f"CH0(T={time_ms})[{name}], {uj}\n" for name, uj in energy_uj.items())


def test_power_rails() -> None:
    launches = [
        answer({RAIL: rails(1000, CPU=5000, TPU=100)}, {RAIL: rails(2000, TPU=100, CPU=5000 + spent)})
        for spent in (200_000, 300_000, 400_000)
    ]
    seen = energy_of(launches, charging=True)  # rails meter what flows, whatever feeds it
    assert seen.energy_mj == pytest.approx(3.0)
    assert seen.rails_mj == {"CPU": pytest.approx(3.0), "TPU": 0.0}
    assert seen.source == "power rails (ODPM)"
    assert seen.resolution_mj == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/sys/class/powercap/intel-rapl:0/energy_uj", "RAPL"),
        ("/sys/class/hwmon/hwmon3/energy1_input", "hwmon energy counters"),
    ],
)
def test_other_counters(path: str, source: str) -> None:
    seen = energy_of([answer({path: "1000\n"}, {path: "501000\n"})], charging=None)
    assert (seen.source, seen.energy_mj) == (source, pytest.approx(5.0))


@pytest.mark.parametrize(
    ("before", "after", "charging", "note"),
    [
        ({}, {}, None, "no power meter"),
        ({}, {}, True, "being charged"),
        ({RAIL: rails(2000, CPU=5)}, {RAIL: rails(1000, CPU=9)}, None, "no power meter"),
        ({RAIL: rails(1000, CPU=5)}, {RAIL: rails(2000, CPU=5)}, None, "did not move"),
        ({RAIL: "x"}, {RAIL: "x"}, None, "no power meter"),
    ],
)
def test_what_was_not_metered_is_none_and_never_zero(
    before: dict[str, str], after: dict[str, str], charging: bool | None, note: str
) -> None:
    seen = energy_of([answer(before, after)], charging)
    assert seen.energy_mj is None
    assert note in seen.note


def gauge(charge_uah: int, status: str = "Discharging") -> dict[str, str]:
    return {f"{BATTERY}/charge_counter": f"{charge_uah}\n", f"{BATTERY}/voltage_now": "4000000\n",
            f"{BATTERY}/status": f"{status}\n"}  # fmt: skip


def test_a_battery_gauge_counts_only_in_enough_steps() -> None:
    long = energy_of([answer(gauge(2_000_000), gauge(1_990_000), 1000)], charging=False)
    assert long.energy_mj == pytest.approx(10_000 * 3.6e-3 * 4.0 * 1e3 / 1000)  # 10 mAh at 4 V are 144 J
    assert long.source == "battery gauge"
    assert long.resolution_mj is not None
    assert long.resolution_mj < long.energy_mj / 5
    short = energy_of([answer(gauge(2_000_000), gauge(1_998_000))], charging=False)
    assert short.energy_mj is None
    assert "measure longer" in short.note
    fed = energy_of([answer(gauge(2_000_000), gauge(1_900_000, "Charging"))], charging=None)
    assert fed.energy_mj is None
    assert "being charged" in fed.note
