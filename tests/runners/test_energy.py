"""Energy from what the meters told around a pause and a run: told only where it was metered, by time stamps."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from edgedistill.cli import bench
from edgedistill.parsers.perfetto import BatteryPoint, PowerTrace
from edgedistill.runners._energy import energy_of
from edgedistill.runners._meters import meters
from edgedistill.runners._perfetto import Recorded
from edgedistill.specs import Energy

RAIL = "/sys/bus/iio/devices/iio:device0/energy_value"
BATTERY = "/sys/class/power_supply/battery"
INA = "/sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
IDLE, BUSY = (10.0, 12.0), (12.0, 14.0)  # seconds of the device's clock


def launch(
    texts: Callable[[float], dict[str, str]], times: list[float], once: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """A launch of 100 inferences whose meters tell `texts(time)`."""
    names = sorted(texts(times[0]))
    readings = [[int(t * 1e9), [[names.index(name), text] for name, text in texts(t).items()]] for t in times]
    windows = {f"{name}_ns": [int(t * 1e9) for t in window] for name, window in (("idle", IDLE), ("busy", BUSY))}
    return {"names": names, "once": once or {}, "readings": readings, "runs": 100, "boot_offset_ns": 0,
            "sustained": False, **windows, **more}  # fmt: skip


def every(step_s: float, start: float = 9.9, end: float = 14.2) -> list[float]:
    return [start + n * step_s for n in range(int((end - start) / step_s) + 1)]


def watts(t: float, idle: float = 2.0, busy: float = 5.0) -> float:
    return busy if BUSY[0] <= t <= BUSY[1] else idle


def joules(t: float, idle: float = 2.0, busy: float = 5.0) -> float:
    """What was spent since second 9."""
    return idle * (t - 9) + (busy - idle) * min(max(0.0, t - BUSY[0]), BUSY[1] - BUSY[0])


def odpm(t: float) -> dict[str, str]:
    ms, uj = round(t * 1e3), round(joules(t) * 1e6)
    return {RAIL: f"t={ms}\nCH0(T={ms})[CPU], {uj - 1000}\nCH1(T={ms})[TPU], 1000\n"}


def ina(t: float) -> dict[str, str]:
    return {f"{INA}/in1_input": "5000\n", f"{INA}/curr1_input": f"{round(watts(t) * 200)}\n"}


def gauge(t: float, status: str = "Discharging", unit: float = 1e6, sign: int = -1) -> dict[str, str]:
    """Renewed four times a second, with some noise."""
    noise = random.Random(int(t * 4)).uniform(0.99, 1.01)
    return {f"{BATTERY}/current_now": f"{round(sign * noise * watts(t) / 4.0 * unit)}\n",
            f"{BATTERY}/voltage_now": "4000000\n", f"{BATTERY}/status": f"{status}\n"}  # fmt: skip


LABELS = {f"{INA}/in1_label": "VDD_IN\n", f"{INA}/shunt1_resistor": "5000\n"}


@pytest.mark.parametrize(
    ("made", "source", "within"),
    [
        (launch(odpm, [9.9, 9.99, 12.0, 14.01]), "power rails (ODPM)", 0.01),
        (launch(ina, every(0.05), LABELS), "INA3221", 0.03),
        (launch(lambda t: {"/sys/class/powercap/intel-rapl:0/energy_uj": f"{round(joules(t) * 1e6)}\n",
                           "/sys/class/powercap/intel-rapl:0:0/energy_uj": "5\n"}, [9.99, 12.0, 14.01]),
         "energy counters of the kernel", 0.01),
        (launch(gauge, every(0.2)), "battery gauge", 0.06),
        (launch(lambda t: gauge(t, unit=1e3, sign=1), every(0.2)), "battery gauge", 0.06),
    ],
    ids=["odpm", "ina3221", "rapl", "gauge in uA", "gauge in mA"],
)  # fmt: skip
def test_every_meter_tells_the_same_run(made: dict[str, Any], source: str, within: float) -> None:
    """5 W for 2 s and 100 inferences are 100 mJ each, of which 60 are above the 2 W of idling."""
    seen = energy_of([made, made], charging=False)
    assert seen.source == source, seen.note
    assert seen.energy_mj == pytest.approx(100.0, rel=within)
    assert seen.idle_mw == pytest.approx(2000.0, rel=within)
    assert seen.above_idle_mj == pytest.approx(60.0, rel=2 * within)
    assert seen.low_mj is not None
    assert seen.high_mj is not None
    assert seen.low_mj <= seen.energy_mj <= seen.high_mj
    assert seen.window_s == pytest.approx(2.0)
    assert seen.resolution_mj is not None
    assert seen.covers


def test_power_is_integrated_by_time_stamps_and_not_by_their_number() -> None:
    """Half of the readings crowd into the idle end of the window; an average of readings would tell 3.4 W."""
    crowded = lambda t: {f"{INA}/in1_input": "5000\n", f"{INA}/curr1_input": f"{200 if t < 12.5 else 1000}\n"}  # noqa: E731
    times = sorted([*every(0.1, 9.9, 12.4), *every(0.01, 12.4, 12.5), *every(0.1, 12.51, 14.2)])
    seen = energy_of([launch(crowded, times, LABELS)], None)
    assert seen.energy_mj == pytest.approx((0.5 * 1 + 1.5 * 5) * 1000 / 100, rel=0.02)


def test_rails_that_feed_others_count_once() -> None:
    rails = {"VDD_GPU_SOC": (1, 400), "VIN_SYS_5V0": (2, 600), "VDDQ_VDD2_1V8AO": (3, 100)}
    texts = {f"{INA}/{kind}{n}_input": f"{value}\n" for n, ma in rails.values()
             for kind, value in (("in", 5000), ("curr", ma))}  # fmt: skip
    once = {f"{INA}/in{n}_label": f"{name}\n" for name, (n, _) in rails.items()}
    seen = energy_of([launch(lambda t: texts, every(0.05), once)], None)
    assert seen.energy_mj == pytest.approx(5 * (0.4 + 0.6) * 2 * 1000 / 100)
    assert seen.rails_mj["VDDQ_VDD2_1V8AO"] == pytest.approx(5 * 0.1 * 2 * 1000 / 100)
    assert "VDD_GPU_SOC + VIN_SYS_5V0" in seen.covers
    assert seen.above_idle_mj is None  # nothing differs from the pause


@pytest.mark.parametrize(
    ("domains", "counted"),
    [
        ({"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl-mmio:0": "package-0"}, {"package-0"}),
        ({"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:0:0": "dram", "intel-rapl:1:0": "dram"},
         {"package-0", "package-1", "dram-0", "dram-1"}),
        ({"intel-rapl:0": "package-0", "intel-rapl:1": "psys", "intel-rapl:0:1": "uncore"}, {"psys"}),
    ],
    ids=["by register and by MMIO", "two sockets with memory", "a laptop's platform"],
)  # fmt: skip
def test_domains_that_overlap_count_once(domains: dict[str, str], counted: set[str]) -> None:
    folder = "/sys/class/powercap"
    once = {f"{folder}/{domain}/name": f"{name}\n" for domain, name in domains.items()}

    def texts(t: float) -> dict[str, str]:
        return {f"{folder}/{domain}/energy_uj": f"{round(joules(t) * 1e6)}\n" for domain in domains}

    seen = energy_of([launch(texts, [9.99, 12.0, 14.01], once)], None)
    assert seen.energy_mj == pytest.approx(100.0 * len(counted), rel=0.01)
    assert set(seen.rails_mj) >= counted
    assert all(name in seen.covers for name in counted) or len(counted) == 1


def test_sockets_hold_their_cores() -> None:
    folder = "/sys/class/hwmon/hwmon2"
    labels = {1: "Ecore000", 2: "Ecore001", 3: "Esocket0"}
    once = {f"{folder}/energy{n}_label": f"{name}\n" for n, name in labels.items()}

    def texts(t: float) -> dict[str, str]:
        return {f"{folder}/energy{n}_input": f"{round(joules(t) * 1e6)}\n" for n in labels}

    assert energy_of([launch(texts, [9.99, 12.0, 14.01], once)], None).energy_mj == pytest.approx(100.0, rel=0.01)


def test_a_counter_read_away_from_the_window_has_bounds_of_its_neighbours() -> None:
    seen = energy_of([launch(odpm, [9.1, 11.5, 12.5, 13.5, 14.5])], None)
    assert (seen.low_mj, seen.high_mj) == (pytest.approx(50.0), pytest.approx(120.0))
    assert seen.low_mj is not None
    assert seen.high_mj is not None
    assert seen.energy_mj is not None
    assert seen.low_mj < seen.energy_mj < seen.high_mj


def backwards(t: float) -> dict[str, str]:
    ms = round(t * 1e3)
    return {RAIL: f"t={ms}\nCH0(T={ms})[CPU], {10**9 - ms}\n"}


@pytest.mark.parametrize(
    ("made", "charging", "note"),
    [
        (None, None, "no power meter"),
        (None, True, "being charged"),
        (launch(odpm, [12.5, 13.5]), None, "not read before and after"),
        (launch(lambda t: {RAIL: "x"}, [9.9, 14.2]), None, "no power rail"),
        (launch(backwards, [9.9, 12.0, 14.2]), None, "ran backwards"),
        (launch(lambda t: {RAIL: "t=5\nCH0(T=5)[CPU], 7\n"}, [9.9, 12.0, 14.2]), None, "did not move"),
        (launch(ina, every(0.5, 9.9, 14.5), LABELS), None, "only 4 readings in 2 s, at least 8"),
        (launch(lambda t: ina(t) | {f"{INA}/curr1_input": "" if t > 13 else "200"}, every(0.05), LABELS), None,
         "is no number"),
        (launch(gauge, every(0.2)), True, "wireless adb"),
        (launch(lambda t: gauge(t, "Charging" if t > 13 else "Discharging"), every(0.2)), False, "being charged"),
        (launch(lambda t: gauge(t, sign=1 if t > 13 else -1), every(0.2)), False, "changes its sign"),
        (launch(lambda t: gauge(t, unit=12_000), every(0.2)), False, "cannot be told apart"),
        (launch(lambda t: gauge(9.0), every(0.2)), False, "changed 0 times in 2 s"),
        (launch(lambda t: gauge(t) | {f"{BATTERY}/voltage_now": "4\n"}, every(0.2)), False, "tells 4e-06 V"),
        ({**launch(ina, every(0.05), LABELS), "readings": [[1]]}, None, "damaged"),
    ],
)  # fmt: skip
def test_what_was_not_metered_is_none_and_never_zero(
    made: dict[str, Any] | None, charging: bool | None, note: str
) -> None:
    seen = energy_of([made], charging)
    assert seen.energy_mj is None
    assert note in seen.note


def test_rails_are_told_while_it_charges() -> None:
    assert energy_of([launch(odpm, [9.9, 12.0, 14.2])], charging=True).energy_mj is not None


def test_the_charge_that_is_left_counts_in_enough_steps() -> None:
    def left(t: float, busy: float) -> dict[str, str]:
        used_mah = int(joules(t, 2.0, busy) / 4.0 / 3.6)  # whole milliampere-hours
        return {f"{BATTERY}/charge_counter": f"{2_000_000 - 1000 * used_mah}\n",
                f"{BATTERY}/voltage_now": "4000000\n"}  # fmt: skip

    seen = energy_of([launch(lambda t: left(t, 500.0), every(0.1))], charging=False)
    assert seen.energy_mj == pytest.approx(10_000, rel=0.03)  # 500 W: a phone in fast motion
    short = energy_of([launch(lambda t: left(t, 5.0), every(0.1))], charging=False)
    assert short.energy_mj is None
    assert "--sustained 600" in short.note


def test_a_long_run_counts_alone() -> None:
    short, long = launch(odpm, [9.9, 12.0, 14.01]), launch(odpm, [9.9, 12.0, 14.01], runs=50, sustained=True)
    assert energy_of([short, short, long], None).energy_mj == pytest.approx(200.0, rel=0.01)
    lost = launch(backwards, [9.9, 12.0, 14.2])
    some = energy_of([short, lost, short], None)
    assert some.energy_mj == pytest.approx(100.0, rel=0.01)
    assert "1 of 3 launches were not metered: the rails' counters ran backwards" in some.note


def traced(rails: bool, volts: int | None, **more: Any) -> Energy:
    """A launch without readings of its own, on a device whose clock since boot is 1000 s ahead."""
    times = every(0.1)
    series = {"S2M_VDD_CPUCL2": tuple((t + 1000, round(joules(t) * 1e6)) for t in times)} if rails else {}
    points = tuple(
        BatteryPoint(time_s=t + 1000, current_ua=round(watts(t) / 4 * 1e6) + n % 3, voltage_uv=volts)
        for n, t in enumerate(times)
    )
    told = Recorded(PowerTrace(rails=series, battery=points), **more)
    made = launch(lambda t: {}, [9.9], boot_offset_ns=1000 * 10**9)
    return energy_of([made], more.get("charging", False), [told])


def test_perfetto() -> None:
    seen = traced(True, None)
    assert (seen.source, seen.energy_mj) == ("Perfetto, power rails", pytest.approx(100.0))
    assert seen.above_idle_mj == pytest.approx(60.0)
    for volts, other in ((4_000_000, None), (None, 4.0)):
        fallback = traced(False, volts, battery_v=other)
        assert (fallback.source, fallback.energy_mj) == ("Perfetto, battery counters", pytest.approx(100.0, rel=0.05))
    blind = traced(False, None)
    assert blind.energy_mj is None
    assert "nobody its voltage" in blind.note
    silent = energy_of([None], None, [Recorded(why="Perfetto does not record: no traced")])
    assert (silent.energy_mj, silent.note) == (None, "Perfetto does not record: no traced")


def test_every_meter_file_offers_what_a_meter_offers() -> None:
    found = meters()
    assert len(found) >= 8
    assert len({meter.RANK for meter in found}) == len(found)
    for meter in found:
        assert meter.NAME
        assert meter.COVERS
        assert not (meter.COMMAND and meter.STREAM)
        assert ("battery" in meter.NAME) == meter.BATTERY


def test_what_a_person_is_told() -> None:
    told = bench.energy_notes(energy_of([launch(ina, every(0.05), LABELS)], None))
    assert told[0].startswith("100 mJ per inference (9")
    assert re.search(r"idle power included; above the 2(\.0\d)? W of idling: (59|60)(\.\d)? mJ$", told[0])
    assert told[1].startswith("metered by INA3221, read every 50 ms: the rails that the board meters")
    flat = energy_of([launch(lambda t: ina(9.0), every(0.05), LABELS)], None)
    assert "not to be told apart from 0" in bench.energy_notes(flat)[0]
