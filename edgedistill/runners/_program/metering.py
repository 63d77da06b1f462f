"""A pause and a run with the energy meters read, where the device has any; see `sampler.py`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

LATE_S = 0.3  # a meter may tell of the last moment only now: one that prints by itself, or reads its chip now and then
END_S = 20.0


class Metering:
    """The sampler of one launch. `found` is False where there is nothing to read and nobody else who meters."""

    def __init__(self, job: dict[str, Any], span_s: float) -> None:
        self.found = bool(job["traced"]) and job["energy_s"] > 0
        self._line: subprocess.Popen[str] | None = None
        if not job["meters"] or job["energy_s"] <= 0:
            return
        self._line = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.sampler"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        asked = {"meters": job["meters"], "core_mask": job["core_mask"], "span_s": span_s}
        if self._ask(json.dumps(asked)) in ("", "0"):
            self.close()
        else:
            self.found = True

    def _ask(self, line: str) -> str:
        """What the sampler answers to a line; empty when it has ended."""
        if not self._line:
            return ""
        assert self._line.stdin
        assert self._line.stdout
        with contextlib.suppress(BrokenPipeError):
            self._line.stdin.write(f"{line}\n")
            self._line.stdin.flush()
        return self._line.stdout.readline().strip()

    def during(self, pause_s: float, run: Callable[[], int]) -> dict[str, Any]:
        """Both windows and all readings; `run` returns its number of inferences. Without a sampler, or with one that
        died, the readings are empty.
        """
        self._ask("read")
        idle = [time.monotonic_ns()]
        time.sleep(pause_s)
        idle.append(time.monotonic_ns())
        self._ask("read")
        busy = [time.monotonic_ns()]
        runs = run()
        busy.append(time.monotonic_ns())
        self._ask("read")
        time.sleep(LATE_S)
        self._ask("read")
        boot = getattr(time, "CLOCK_BOOTTIME", None)
        offset = time.clock_gettime_ns(boot) - time.monotonic_ns() if boot is not None else 0
        told = self.close() or {"names": [], "once": {}, "readings": []}
        return {"idle_ns": idle, "busy_ns": busy, "runs": runs, "boot_offset_ns": offset, **told}

    def close(self) -> dict[str, Any] | None:
        """End the sampler; what it read."""
        if not self._line:
            return None
        try:
            told, _ = self._line.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._line.kill()
            told, _ = self._line.communicate()
        self._line = None
        with contextlib.suppress(ValueError):
            value = json.loads(told)
            return value if isinstance(value, dict) else None
        return None
