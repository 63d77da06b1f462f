"""What the tests of devices share."""

from __future__ import annotations

from pathlib import Path

from edgedistill.runners import Timing

QUICK = Timing(warmup_s=0.0, warmup_runs=1, runs_min=20, time_s=0.02, runs_max=200, timeout_s=30.0)
BATTERY = "Current Battery Service state:\n  USB powered: true\n  status: 5\n  level: 100\n  scale: 100\n"
THERMAL = "Current temperatures from HAL:\n\tTemperature{mValue=62.5, mType=0, mName=CPU0, mStatus=0}\n"


def put(path: Path, script: str) -> None:
    """A shell program on the device."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def left_over(root: Path) -> list[str]:
    """What a session forgot on the device."""
    return sorted(path.name for path in root.iterdir() if path.name.startswith("edgedistill."))
