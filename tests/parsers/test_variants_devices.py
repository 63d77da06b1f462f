"""What devices say of themselves in the world: other versions, vendors and boards. Typed again, with figures of ours."""
# ruff: noqa: E501 (lines of tools)

# ruff: noqa: E501 (lines of tools)
from __future__ import annotations

import struct

import outputs
import pytest

from edgedistill import parsers
from edgedistill.errors import DataError
from edgedistill.parsers import (
    batterystats,
    benchmark_model,
    dumpsys_battery,
    dumpsys_meminfo,
    dumpsys_thermal,
    odpm,
    perfetto,
    pmic,
    powermetrics,
    tegrastats,
)
from edgedistill.parsers._text import number


@pytest.mark.parametrize(
    ("text", "value"),
    [("614,5", 614.5), ("1,234.5", 1234.5), ("1.234,5", 1234.5), ("1,234,567", 1234567), ("1.24027e+06", 1240270)],
)
def test_numbers_of_other_locales(text: str, value: float) -> None:
    assert number(text) == value


def test_a_number_that_may_be_two_is_refused() -> None:
    with pytest.raises(DataError, match="thousands or decimals"):
        number("1,234")
    with pytest.raises(DataError, match="thousands or decimals"):
        benchmark_model.parse("Inference timings in us: Init: 5, Inference (avg): 81,500")


BATTERY_ABSENT = outputs.BATTERY.replace("present: true", "present: false").replace("level: 64", "level: 0")


def test_a_battery_that_is_set_by_hand_or_not_there() -> None:
    """`dumpsys battery unplug` makes a phone on a cable say that it is discharged."""
    by_hand = outputs.UNPLUGGED.replace("state:\n", "state:\n  (UPDATES STOPPED -- use 'reset' to restart)\n")
    assert not dumpsys_battery.parse(outputs.UNPLUGGED).charging
    assert dumpsys_battery.parse(by_hand).overridden
    assert dumpsys_battery.parse(by_hand).charging
    assert not dumpsys_battery.parse(BATTERY_ABSENT).present
    dock = outputs.UNPLUGGED.replace("  Wireless powered: false", "  Wireless powered: false\n  Dock powered: true")
    assert dumpsys_battery.parse(dock).powered_by == ("DOCK",)


def test_thermal_of_android_16() -> None:
    text = outputs.THERMAL.replace("IsStatus", "ThermalEventListeners:\n\tcallbacks: 4\n\tkilled: false\nIsStatus") + (
        "Temperature static thresholds from HAL:\n"
        "\tTemperatureThreshold{mType=3, mName=SKIN, mHotThrottlingThresholds=[NaN, NaN, NaN, 50.0, 70.0, 80.0, 90.0]}\n"
        "Temperature headroom thresholds:\n[NaN, 0.8, 1.0]\n"
    )
    assert dumpsys_thermal.parse(text) == dumpsys_thermal.parse(outputs.THERMAL)


def test_not_everything_in_the_form_of_a_temperature_is_one() -> None:
    """A Pixel tells limits of its battery's voltage, current and charge among its temperatures."""
    text = outputs.THERMAL.replace("Current temperatures from HAL:\n", "HAL connection:\n\tThermalHAL 2.0 connected: yes\n"
        "Current temperatures from HAL:\n\tTemperature{mValue=8900.0, mType=7, mName=soft_ocp_gpu, mStatus=0}\n"
        "\tTemperature{mValue=1050.0, mType=6, mName=vdroop1, mStatus=0}\n"
        "\tTemperature{mValue=-0.05, mType=-1, mName=USB2-MINUS-USB, mStatus=0}\n")  # fmt: skip
    seen = dumpsys_thermal.parse(text)
    assert set(seen.temperatures_celsius) == {"CPU0", "CPU7", "SKIN", "USB2-MINUS-USB"}
    assert (seen.hottest("cpu", "skin"), seen.kinds["USB2-MINUS-USB"]) == (61.5, "other")


def test_both_chips_rails_in_one_file() -> None:
    two = outputs.RAILS + "t=200040\nCH0(T=200040)[S2S_VDD_G3D], 900\n"
    seen = odpm.parse(two)
    assert (seen.time_ms, seen.energy_uj["S2S_VDD_G3D"]) == (200000, 900)


NANO = (
    "RAM 613/3964MB (lfb 634x4MB) SWAP 0/1982MB (cached 0MB) CPU [2%@102,1%@102,0%@102,0%@102] EMC_FREQ 0% GR3D_FREQ 0% "
    "PLL@39C CPU@40.5C PMIC@100C GPU@41C AO@46C thermal@41C POM_5V_IN 900/943 POM_5V_GPU 0/0 POM_5V_CPU 123/123"
)


XAVIER = (
    "RAM 721/31927MB (lfb 7291x4MB) IRAM 0/252kB(lfb 252kB) CPU [2%@1190,off] EMC_FREQ 0%@665 GR3D_FREQ 0%@318 APE 150 "
    "MTS fg 0% bg 0% AO@37.5C GPU@37.5C GPU 0/0 CPU 311/311 SOC 932/932 CV 0/0 VDDRQ 621/621 SYS5V 1482/1482"
)


THOR = "RAM 9/99MB (lfb 1x4MB) CPU [1%@972] gpu@40.5C VDD_GPU -392mW/-390mW VDD_CPU_SOC_MSS 3924mW/3924mW VIN 23000mW/23000mW"


def test_tegrastats_of_every_board() -> None:
    kind, seen = parsers.parse(outputs.TEGRASTATS.encode())
    assert kind == "tegrastats"
    assert (seen[0].time, seen[0].cpu_percent, seen[0].gpu_percent) == ("01-02-2026 10:00:00", (5, None, 17), 31)
    assert seen[0].power_mw == {"VDD_IN": 5200, "VDD_CPU_GPU_CV": 800}
    assert seen[0].average_mw == {"VDD_IN": 5100, "VDD_CPU_GPU_CV": 780}
    assert seen[0].temperatures_celsius == {"cpu": 45.5, "tj": 46}
    assert seen[0].ram_used_mb == pytest.approx(2000 * 1.048576)
    assert tegrastats.parse(NANO)[0].power_mw == {"POM_5V_IN": 900, "POM_5V_GPU": 0, "POM_5V_CPU": 123}
    assert tegrastats.parse(XAVIER)[0].power_mw == {
        "GPU": 0, "CPU": 311, "SOC": 932, "CV": 0, "VDDRQ": 621, "SYS5V": 1482}  # fmt: skip
    assert tegrastats.parse(THOR)[0].power_mw["VDD_GPU"] == -392
    alone = tegrastats.parse("RAM 2840/7620MB CPU [25%@1420,off] thermal@41.7C VDD_IN 5765mW VDD_SOC 1497mW\n")
    assert (alone[0].power_mw, alone[0].average_mw) == ({"VDD_IN": 5765, "VDD_SOC": 1497}, {})
    for text, message in (
        ("up\n", "not `tegrastats`"),
        (NANO[:80], "cut off"),
        (NANO + "\n" + NANO[:-30], "last line of tegrastats was cut off"),
        (NANO.replace("1%@102", "x"), "no load"),
    ):
        with pytest.raises(DataError, match=message):
            tegrastats.parse(text)


def test_pmic() -> None:
    kind, seen = parsers.parse(outputs.PMIC.encode())
    assert kind == "pmic"
    assert seen.power_mw == {"3V7_WL_SW": pytest.approx(185), "VDD_CORE": pytest.approx(1600)}
    assert seen.volts["EXT5V"] == 5.1
    for text, message in (
        ('error=1 error_msg="Command not registered"\n', "Only a Raspberry Pi 5"),
        (outputs.PMIC.partition("    3V7_WL_SW_V")[0], "a current and no voltage"),
        ("      EXT5V_V volt(24)=5.10000000V\n", "no rail with a current"),
        (outputs.PMIC + outputs.PMIC, "twice"),
        (outputs.PMIC.replace("2.00000000A", "2.0"), "is no rail"),
    ):
        with pytest.raises(DataError, match=message):
            pmic.parse(text)


def test_memory_of_an_app() -> None:
    kind, seen = parsers.parse(outputs.MEMINFO.encode())
    assert kind == "dumpsys_meminfo"
    assert (seen.pid, seen.process) == (1224, "com.example.app")
    assert (seen.pss_mb, seen.rss_mb) == (pytest.approx(102.4), pytest.approx(184.32))
    assert (seen.native_heap_mb, seen.swap_pss_mb) == (pytest.approx(20.48), pytest.approx(0.04096))
    old = dumpsys_meminfo.parse(outputs.MEMINFO.partition(" App Summary")[0])
    assert (old.pss_mb, old.rss_mb) == (pytest.approx(102.4), None)
    for text, message in (
        ("No process found for: com.x\n", "does not run"),
        (outputs.MEMINFO.partition("        TOTAL")[0], "cut off"),
        (outputs.MEMINFO * 2, "2 processes"),
    ):
        with pytest.raises(DataError, match=message):
            dumpsys_meminfo.parse(text)


def test_powermetrics_of_an_intel_mac() -> None:
    text = outputs.POWERMETRICS.splitlines()[0] + "\nIntel energy model derived package power (CPUs+GT+SA): 3.16W\n"
    assert parsers.parse(text.encode())[0] == "powermetrics"
    assert powermetrics.parse(text)[0].power_mw == {"combined": 3160}


def test_powermetrics_as_property_lists() -> None:
    kind, seen = parsers.parse((outputs.PLIST + "\0" + outputs.PLIST).encode())
    assert (kind, len(seen)) == ("powermetrics", 2)
    assert seen[1].power_mw == {"cpu": 993.5, "gpu": 476.25, "ane": 0, "combined": 1469.75}
    assert (seen[1].elapsed_ms, seen[1].thermal_pressure) == (1000.5, "Nominal")
    for text, message in (
        (outputs.PLIST + "\0" + outputs.PLIST[:-30], "sample 2 is no whole property list"),
        (outputs.PLIST.replace("_power", "_energy"), "tells no power"),
        (outputs.PLIST.replace("<real>993.5</real>", "<string>x</string>"), "not a number"),
        ('<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><plist><dict/></plist>', "no whole property list"),
    ):
        with pytest.raises(DataError, match=message):
            powermetrics.parse(text)


def test_batterystats_for_people() -> None:
    text = (
        "Statistics since last charge:\n  Time on battery: 1h 2m 3s 4ms (98.8%) realtime, 30m uptime\n"
        "  Estimated power use (mAh):\n    Capacity: 3500, Computed drain: 198, actual drain: 315-318\n"
        "    Screen: 24.1\n    Uid u0a192: 53.8 ( cpu=53.7 wifi=0.0960 )\n    Uid 1000: 44.5 ( cpu=42.3 )\n"
        "    UID u10a5: 2.25\n\n  All kernel wake locks:\n"
        "  Estimated power use (mAh):\n    Capacity: 1, Computed drain: 1, actual drain: 1\n    Uid 1000: 9\n"
    )
    kind, seen = parsers.parse(text.encode())
    assert kind == "batterystats"
    assert (seen.capacity_mah, seen.used_mah, seen.on_battery_ms) == (3500, 198, 3_723_004)
    assert seen.apps_mah == {10192: 53.8, 1000: 44.5, 1010005: 2.25}
    with pytest.raises(DataError, match="cut off"):
        batterystats.parse(text.partition(", Computed")[0])


def field(place: int, value: int | bytes) -> bytes:
    """One protobuf field of a small number."""
    if isinstance(value, int):
        data = b""
        value &= 2**64 - 1
        while value > 0x7F:
            data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
        return field_tag(place, 0) + data + bytes([value])
    return field_tag(place, 2) + bytes([len(value)]) + value


def field_tag(place: int, wire: int) -> bytes:
    tag = place << 3 | wire
    return bytes([tag]) if tag < 128 else bytes([tag & 0x7F | 0x80, tag >> 7])


def rails(time_ms: int, uj: int, name: bytes = b"") -> bytes:
    """A packet with one rail's reading."""
    head = field(1, field(1, 3) + field(2, name)) if name else b""
    return field(
        1, field(8, 5_000_000_000) + field(40, head + field(2, field(1, 3) + field(2, time_ms) + field(3, uj)))
    )


def test_a_trace_of_perfetto() -> None:
    battery = field(
        1, field(8, 6_000_000_000) + field(38, field(1, 2_000_000) + field(3, -250_000) + field(7, 4_000_000))
    )
    data = (
        rails(5000, 70, b"S2M_VDD_CPUCL2") + field(1, field(8, 1) + field(45, b"\x0a\x01x")) + rails(5100, 90) + battery
    )
    kind, seen = parsers.parse(data)
    assert kind == "perfetto"
    assert seen.rails == {"S2M_VDD_CPUCL2": ((5.0, 70), (5.1, 90))}
    assert (seen.battery[0].time_s, seen.battery[0].current_ua, seen.battery[0].voltage_uv) == (
        6.0,
        -250_000,
        4_000_000,
    )
    zeros = perfetto.parse(rails(5000, 70) + rails(5050, 0) + rails(5100, 90))
    assert zeros.rails == {"rail 3": ((5.0, 70), (5.1, 90))}
    for broken, message in (
        (rails(5000, 70) + rails(5100, 60), "runs backwards"),
        (data[:-3], "cut off"),
        (field(1, field(8, 5)), "neither power rails nor battery counters"),
        (field(1, field(50, b"x")), "compressed trace"),
        (field(1, field(58, 64) + field(38, field(1, 5))), "timed by clock 64"),
        (field(2, b"x"), "not a trace"),
        (struct.pack("<I", 7), "no protobuf|cut off"),
    ):
        with pytest.raises(DataError, match=message):
            perfetto.parse(broken)
