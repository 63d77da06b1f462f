"""A way to a device, as `_adb.py` and `_ssh.py` are one, and how the programs that they call are run."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

SHELL_S = 30.0  # a short command


class Transport(Protocol):
    """A way to a device: raw, with no promise that what it returns is whole."""

    @property
    def runner(self) -> str:
        """The kind of line: adb or ssh."""

    @property
    def name(self) -> str:
        """The device, as the user writes it after --on."""

    def connect(self) -> None:
        """Make sure that the device is there and lets us in. Raises InfrastructureError or SpecError."""

    def shell(self, script: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """Run a script with the device's `sh`. Raises subprocess.TimeoutExpired."""

    def push(self, local: Path, remote: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """Copy a file there."""

    def pull(self, remote: str, local: Path, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """Copy a file here."""

    def explain(self, output: str) -> str:
        """What a failure's own words mean, and what to do."""

    def lost(self, output: str) -> bool:
        """Whether a failure's own words are those of a line that may come back."""

    def hang_up(self) -> None:
        """Forget a line that is dead, so that `connect` makes a new one."""

    def close(self) -> None:
        """Leave nothing running here."""


def run_quietly(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
    """Run a client program in a session of its own, so that Ctrl-C reaches us first and we clean up the device."""
    return subprocess.run(
        list(command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout_s,
        check=False,
        start_new_session=True,
    )
