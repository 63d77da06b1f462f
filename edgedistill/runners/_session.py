"""A session on a device: commands that count only when they say that they ended, files that count only by their hash.

The exit code of `adb` and `ssh` alone says little: adb 34 ends 0 when the cable is pulled, and ends 0 when it cannot
connect; ssh ends 255 for a lost line and for a killed command alike. So every script prints a mark with a number that
is used once, and its exit status, as its last act; without it the device is lost, whatever the exit code says.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TypeVar

from edgedistill.errors import InfrastructureError
from edgedistill.runners._transport import SHELL_S, Transport
from edgedistill.store import sha256_of

Answer = TypeVar("Answer")
MARK = "__ED_DONE__"
RECONNECTIONS, FIRST_PAUSE_S = 3, 0.2  # of a session; the pauses between attempts double
END = "if [ -f pid ]; then kill -9 $(cat pid) 2>/dev/null; rm -f pid; fi; true"  # what a lost line left running
COPY_MB_PER_S = 0.5  # the slowest link that is waited for
TIMED_OUT = (124, 137, 143)  # of `timeout`: coreutils and toybox, with and without -k
# Where a pushed file may be executed; the first that can be written to is taken.
BASES = ("/data/local/tmp", "${TMPDIR:-/tmp}", "/tmp", ".")


class LineLost(InfrastructureError):
    """The line went, not the device's patience or its storage: what was asked may be asked again."""


@dataclass(frozen=True)
class Ended:
    """How a command ended on the device, not here; `peak_kb` is its highest resident memory, where it was watched."""

    status: int
    stdout: str
    stderr: str
    peak_kb: int | None = None


WATCH = """(while :; do p=$(cat pid 2>/dev/null) && grep VmHWM /proc/$p/status >peak.new 2>/dev/null && mv peak.new peak
sleep 0.2 2>/dev/null || sleep 1; done) >/dev/null 2>&1 & w=$!"""


class Session:
    """A device with a folder of our own on it, which is removed at the end, with whatever still runs in it."""

    def __init__(self, transport: Transport, reconnect_s: float = 0.0) -> None:
        self._transport = transport
        self._reconnect_s = reconnect_s
        self._tag = f"edgedistill.{secrets.token_hex(6)}"
        self.folder = ""
        self.reconnections = 0
        self.identity: Callable[[], object] | None = None
        self._known: object = None

    @property
    def name(self) -> str:
        """The device, as the user named it."""
        return self._transport.name

    @property
    def runner(self) -> str:
        """The kind of line."""
        return self._transport.runner

    def shell(self, script: str, timeout_s: float = SHELL_S) -> Ended:
        """Run a script to its end.

        Raises:
            InfrastructureError: the device was lost, or did not answer in time.
        """
        nonce = secrets.token_hex(8)
        # The parentheses keep an `exit` of the script from skipping the mark.
        asked = f"(\n{script}\n)\nprintf '\\n{MARK}:%s:%s\\n' {nonce} \"$?\""
        try:
            done = self._transport.shell(asked, timeout_s)
        except subprocess.TimeoutExpired:
            raise InfrastructureError(
                f"{self.name}: no answer within {timeout_s:g} s. The device hangs or the line is down: "
                "connect it again and run the same command."
            ) from None
        except OSError as error:
            raise InfrastructureError(f"{self.name}: cannot start {self.runner}: {error.strerror}") from None
        stdout = done.stdout.decode("utf-8", "replace").replace("\r\n", "\n")
        stderr = done.stderr.decode("utf-8", "replace")
        found = re.search(rf"\n{MARK}:{nonce}:(\d+)\n\Z", stdout)
        if not found:
            raise self._failed(stderr + stdout)
        return Ended(int(found[1]), stdout[: found.start()], stderr)

    def _failed(self, told: str, doing: str = "") -> InfrastructureError:
        """What a transport's failure means: the line, which may come back, or something that stays."""
        kind = LineLost if self._transport.lost(told) else InfrastructureError
        return kind(f"{self.name}: {doing}{self._transport.explain(told)}")

    def steadily(self, action: Callable[[], Answer]) -> Answer:
        """Do something that may be done twice; a line that is lost in the middle of it is awaited, a few times.

        Raises:
            InfrastructureError: the line stays lost, is lost again and again, or leads to another device.
        """
        while True:
            try:
                return action()
            except LineLost as lost:
                self._reconnect(lost)

    def remember(self, identity: Callable[[], object]) -> None:
        """Keep what the device says it is; after each reconnection it must say the same."""
        self.identity, self._known = identity, identity()

    def _reconnect(self, lost: LineLost) -> None:
        """Wait until the same device answers again, and end what still runs there.

        Raises:
            InfrastructureError: it does not, or it is another one, or what was copied to it is gone.
        """
        if not self._reconnect_s:
            raise lost
        if self.reconnections >= RECONNECTIONS:
            raise InfrastructureError(f"{lost} (It was reached again {RECONNECTIONS} times, and lost each time.)")
        deadline, pause = time.monotonic() + self._reconnect_s, FIRST_PAUSE_S
        while True:
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            try:
                self._transport.hang_up()
                self._transport.connect()
                same = self.identity is None or self.identity() == self._known
                there = not self.folder or not self.shell(f"cd {quote(self.folder)} && {{ {END}; }}").status
                break
            except InfrastructureError:
                if time.monotonic() >= deadline:
                    raise InfrastructureError(f"{lost} (It was not back after {self._reconnect_s:g} s.)") from None
                pause *= 2
        if not same:
            raise InfrastructureError(f"{self.name}: the line came back with another device, or another system on it. "
                                      "Nothing of two devices is mixed: run the same command again.")  # fmt: skip
        if not there:
            raise InfrastructureError(f"{self.name}: the line came back, and what was copied to it is gone: it was "
                                      "restarted. Run the same command again.")  # fmt: skip
        self.reconnections += 1

    def check(self, script: str, doing: str, timeout_s: float = SHELL_S) -> str:
        """As `shell`, for a script that must succeed; returns what it printed.

        Raises:
            InfrastructureError: it did not.
        """
        ended = self.shell(script, timeout_s)
        if ended.status:
            told = (ended.stderr.strip() or ended.stdout.strip() or "no reason given")[-300:]
            hint = self._transport.explain(told) if "No space left" in told else told
            raise InfrastructureError(f"{self.name}: {doing} failed ({ended.status}): {hint}")
        return ended.stdout

    def push(self, local: Path, name: str = "") -> str:
        """Copy a file into our folder and compare its hash there; returns its path on the device.

        Raises:
            InfrastructureError: the device is full or lost, or holds other bytes afterwards.
        """
        return self.steadily(lambda: self._push(local, f"{self.folder}/{name or safe_name(local.name)}"))

    def _push(self, local: Path, remote: str) -> str:
        limit_s = SHELL_S + local.stat().st_size / 1e6 / COPY_MB_PER_S
        try:
            done = self._transport.push(local, remote, limit_s)
        except subprocess.TimeoutExpired:
            raise InfrastructureError(
                f"{self.name}: {local.name} was not copied within {limit_s:.0f} s: the line is too slow or down."
            ) from None
        told = (done.stderr + b"\n" + done.stdout).decode("utf-8", "replace")
        # adb 34 says "1 file pushed" on stdout of a full device: the words of an error count before everything else.
        if done.returncode or "No space left" in told:
            raise self._failed(told, f"copying {local.name}: ")
        seen = self.check(f"sha256sum {quote(remote)}", f"reading back {local.name}", limit_s).split()
        if not seen or seen[0].lstrip("\\") != sha256_of(local):
            raise InfrastructureError(
                f"{self.name}: {local.name} is not the same file on the device after it was copied. "
                "The line or its storage damages data: try another cable or port."
            )
        return remote

    def pull(self, remote: str, local: Path, limit_s: float = 2 * SHELL_S) -> None:
        """Copy a file from the device.

        Raises:
            InfrastructureError: it is not there, or the device was lost.
        """
        try:
            done = self._transport.pull(remote, local, limit_s)
        except subprocess.TimeoutExpired:
            raise InfrastructureError(f"{self.name}: {remote} was not copied within {limit_s:g} s.") from None
        if done.returncode or not local.is_file():
            told = (done.stderr + b"\n" + done.stdout).decode("utf-8", "replace")
            raise self._failed(told, f"fetching {remote}: ")

    def make_folder(self) -> None:
        """Make our folder where programs may be executed.

        Raises:
            InfrastructureError: nothing there can be written to.
        """
        tag = self._tag
        places = " ".join(f'"{base}"' for base in BASES)
        script = (
            f'for base in {places}; do d="$base/{tag}"; mkdir -m 700 "$d" 2>/dev/null; if [ -O "$d" ]; then '
            'cd "$d" && pwd && exit 0; fi; done; exit 9'
        )
        ended = self.steadily(lambda: self.shell(script))
        path = ended.stdout.strip()
        if ended.status or not re.fullmatch(r"/[^\n'\"\\]*", path) or not path.endswith(tag):
            raise InfrastructureError(
                f"{self.name}: none of /data/local/tmp, $TMPDIR and /tmp can be written to; the storage is full or "
                f"read-only. {ended.stderr.strip()[-200:]}"
            )
        self.folder = path

    def run(self, argv: Sequence[str], *, environment: dict[str, str], timeout_s: float, watch: bool = False) -> Ended:
        """Run a program in our folder, under a time limit that the device itself keeps: a client that gives up, or is
        killed, leaves the remote process running. Its process id is kept in a file, so that it can be ended.

        `watch` reads the kernel's high-water mark of its memory five times a second; what it adds in the last fifth of
        a second is missed.

        Raises:
            InfrastructureError: it ran out of time, or the device was lost.
        """
        command = " ".join(map(quote, argv))
        variables = " ".join(f"{key}={quote(value)}" for key, value in environment.items())
        inner = f"echo $$ >pid; exec {command}"
        script = (
            f"cd {quote(self.folder)} || exit 9; command -v timeout >/dev/null || exit 8; rm -f peak\n"
            f"{WATCH if watch else 'w='}\n"
            f"env {variables} timeout {int(timeout_s) + 1} sh -c {quote(inner)}; s=$?; rm -f pid\n"
            '[ -n "$w" ] && kill "$w" 2>/dev/null; exit $s'
        )
        ended = self.shell(script, timeout_s + SHELL_S)
        if ended.status == 8:
            raise InfrastructureError(f"{self.name}: has no `timeout` program: install coreutils, busybox or toybox.")
        if ended.status in TIMED_OUT:
            raise InfrastructureError(
                f"{self.name}: {Path(argv[0]).name} did not end within {timeout_s:g} s and was stopped there; "
                "or the device ran out of memory and killed it."
            )
        if not watch:
            return ended
        told = re.search(r"(\d+) kB", self.shell(f"cat {quote(self.folder)}/peak").stdout)
        return replace(ended, peak_kb=int(told[1]) if told else None)

    def clean(self) -> None:
        """End what still runs in our folder and remove it. A lost device cannot be cleaned; that is not told again."""
        if not self.folder:
            return
        folder, self.folder = quote(self.folder), ""
        script = f"cd {folder} && {{ {END}; }}; cd / && rm -rf {folder}"
        with contextlib.suppress(InfrastructureError):
            self.shell(script)


@contextlib.contextmanager
def opened(transport: Transport, reconnect_s: float = 0.0) -> Iterator[Session]:
    """A session that leaves nothing behind: not after an error, and not after Ctrl-C.

    Raises:
        SpecError: the device was named wrongly.
        InfrastructureError: it is not there, or does not let us in.
    """
    session = Session(transport, reconnect_s)
    try:
        transport.connect()
        session.make_folder()
        yield session
    finally:
        session.clean()
        transport.close()


def safe_name(name: str) -> str:
    """A file name that no shell on any device reads as anything else."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip("-.")
    return plain if plain == name else f"{hashlib.sha256(name.encode()).hexdigest()[:8]}_{plain or 'file'}"
