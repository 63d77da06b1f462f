"""Measuring the phone that is a thread, and states that make it unfit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from fake_adbd import FakeAdbd
from phones import BATTERY, QUICK, put

from edgedistill.runners import How, Job, adb
from edgedistill.specs import Measurement

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def bench(phone: FakeAdbd, job: Job, launches: int = 1, time_s: float = QUICK.time_s, **how: object) -> Measurement:
    usual = {"where": phone.serial, "python": sys.executable, "cool_down_s": 0.0, "reconnect_s": 1.0, "unfit": "record"}
    told = How(**{**usual, **how})  # type: ignore[arg-type]
    return adb.measure_many(
        {"m": job}, launches=launches, timing=replace(QUICK, time_s=time_s, runs_max=10**6), how=told
    )["m"]


def hot(phone: FakeAdbd) -> None:
    (phone.root / "thermalservice.txt").write_text("Thermal Status: 3\n")


def empty_battery(phone: FakeAdbd) -> None:
    (phone.root / "battery.txt").write_text(BATTERY.replace("level: 100", "level: 7"))


def saver(phone: FakeAdbd) -> None:
    put(phone.bin / "settings", "echo 1")


def faulty(**values: object) -> Callable[[FakeAdbd], None]:
    def set_them(phone: FakeAdbd) -> None:
        for name, value in values.items():
            setattr(phone.faults, name, value)

    return set_them
