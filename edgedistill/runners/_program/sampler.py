"""Reads the device's energy meters in a process of its own, so that the one that is measured never waits for them.

It is asked in lines: the first is a JSON object of what to read; each later one makes it read everything at once and
answer. When its input ends, it prints all that it read and ends. Times are those of the monotonic clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

COMMAND_S, STREAM_S = 5.0, 3.0  # how long a program may take to answer, and to say its first word
READINGS_MAX = 1500  # of a polled meter; a longer run is read less often
SYSFS = Path(os.environ.get("EDGEDISTILL_SYSFS", "/sys"))  # elsewhere in some containers


class Sources:
    """What is there of the meters that are wanted."""

    def __init__(self, wanted: list[dict[str, Any]], span_s: float) -> None:
        self.names: list[str] = []
        self.once: dict[str, str] = {}
        self.files: list[tuple[int, Path, bool]] = []  # place in names, path, whether it is polled
        self.commands: list[tuple[int, list[str]]] = []
        self.streams: list[tuple[int, list[str]]] = []
        self.interval_s = 0.0
        for meter in wanted:
            found = [path for pattern in meter["files"] for path in sorted(SYSFS.glob(pattern)) if text_of(path)]
            polled = bool(meter["poll_ms"])
            command, stream = meter["command"], meter["stream"]
            if found:
                self.files += [(self._place(told_as(path)), path, polled) for path in found]
                for path in (path for pattern in meter["once"] for path in sorted(SYSFS.glob(pattern))):
                    self.once[told_as(path)] = text_of(path) or ""
            elif command and not self.interval_s and printed(command):
                self.commands.append((self._place(" ".join(command)), command))
            elif stream and not self.interval_s and shutil.which(stream[0]):
                self.streams.append((self._place(" ".join(stream)), stream))
            else:
                continue
            if polled:
                self.interval_s = max(self.interval_s, meter["poll_ms"] / 1e3, span_s / READINGS_MAX)

    def _place(self, name: str) -> int:
        self.names.append(name)
        return len(self.names) - 1

    def read(self, *, everything: bool) -> list[Any]:
        """The time in the middle of reading, and the texts; without `everything` only what is polled."""
        begin = time.monotonic_ns()
        texts = [(place, text_of(path)) for place, path, polled in self.files if polled or everything]
        texts += [(place, printed(command)) for place, command in self.commands]
        middle = (begin + time.monotonic_ns()) // 2
        return [middle, [[place, text] for place, text in texts if text]]


def told_as(path: Path) -> str:
    """The path as it is called on every device."""
    return f"/sys/{path.relative_to(SYSFS)}"


def text_of(path: Path) -> str | None:
    """A file's text; None when it may not be read, or is gone."""
    with contextlib.suppress(OSError, UnicodeDecodeError):  # root only on many devices
        return path.read_text()
    return None


def printed(command: list[str]) -> str | None:
    """What a program prints; None when it is not there, fails or hangs."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=True).stdout
    return None


def follow(stream: subprocess.Popen[str], place: int, readings: list[list[Any]]) -> None:
    """Note every line of a program that goes on, until it ends."""
    for line in stream.stdout or ():
        readings.append([time.monotonic_ns(), [[place, line]]])


def wait_for(readings: list[list[Any]], count: int) -> None:
    """Until `count` programs that go on have said something; what stays silent has nothing to tell."""
    until = time.monotonic() + STREAM_S
    while len({place for _, texts in list(readings) for place, _ in texts}) < count and time.monotonic() < until:
        time.sleep(0.02)


def keep_away(mask: str) -> None:
    """Leave the cores of the measurement alone, where there are others."""
    with contextlib.suppress(OSError, AttributeError):
        bits = int(mask or "0", 16)
        os.sched_setaffinity(0, {core for core in range(os.cpu_count() or 1) if not bits >> core & 1})


def main() -> None:
    """Serve one measurement."""
    asked = json.loads(line_of(0))
    keep_away(asked["core_mask"])
    sources = Sources(asked["meters"], asked["span_s"])
    if not sources.names:
        say("0")
        return
    readings: list[list[Any]] = []
    streams = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
               for _, argv in sources.streams]  # fmt: skip
    for (place, _), stream in zip(sources.streams, streams, strict=True):
        threading.Thread(target=follow, args=(stream, place, readings), daemon=True).start()
    wait_for(readings, len(streams))
    say(str(len(sources.names)))
    polled = sources.commands or any(item[2] for item in sources.files)
    try:
        while True:
            asks = select.select([0], [], [], sources.interval_s if polled else None)[0]
            if asks and not line_of(0):
                break
            readings.append(sources.read(everything=bool(asks)))
            if asks:
                say("read")
    finally:
        for stream in streams:
            stream.terminate()
    say(json.dumps({"names": sources.names, "once": sources.once, "readings": list(readings)}))


def line_of(file: int) -> str:
    """One line, read byte by byte so that none of the next is taken; empty at the end."""
    data = b""
    while not data.endswith(b"\n") and (piece := os.read(file, 1)):
        data += piece
    return data.decode()


def say(line: str) -> None:
    """A line to the one that asks."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
