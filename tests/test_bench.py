"""Benchmarks take hours and are run by hand: that each of them still finds what it imports is tested here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench"


def test_every_benchmark_finds_what_it_imports() -> None:
    names = sorted(path.stem for path in BENCH.glob("*.py"))
    assert "size" in names
    imported = "; ".join(f"import {name}" for name in names)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", imported], cwd=BENCH, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
