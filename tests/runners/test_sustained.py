"""A long run on this machine: the first minute against the last."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgedistill.runners import Job, Timing, host
from edgedistill.specs import Sustained

DEVICES = Path(__file__).parents[1] / "devices"
QUICK = Timing(warmup_s=0.0, warmup_runs=1, runs_min=20, time_s=0.02)


def run(seconds: float, launches: int = 1) -> tuple[float, Sustained]:
    golden = json.loads((DEVICES / "tiny_static.json").read_text())
    job = Job(DEVICES / "tiny_static.tflite", "length_8", golden["inputs"])
    start = time.monotonic()
    timing = replace(QUICK, sustained_s=seconds)
    seen = host.measure_many({"m": job}, launches=launches, timing=timing)["m"]
    assert seen.sustained is not None
    return time.monotonic() - start, seen.sustained


def test_a_run_of_seconds_has_five_windows_and_is_taken_once() -> None:
    took, seen = run(2.5, launches=2)
    assert (seen.seconds, seen.window_s, len(seen.curve_ms)) == (2.5, 0.5, 5)
    assert 2.5 <= took < 5 + 20  # the last launch alone is long; the rest is starting processes


@pytest.mark.slow
def test_the_first_minute_against_the_last() -> None:
    """Five minutes on a machine that does not throttle: as many windows as minutes, and no drift to speak of."""
    took, seen = run(300.0)
    assert took >= 300
    assert (seen.seconds, seen.window_s, len(seen.curve_ms)) == (300.0, 60.0, 5)
    first, last = seen.curve_ms[0], seen.curve_ms[-1]
    assert (seen.first_ms, seen.last_ms, seen.ratio) == (first, last, last / first)
    middle = statistics.median(seen.curve_ms)
    assert all(0.5 < value / middle < 2 for value in seen.curve_ms)
