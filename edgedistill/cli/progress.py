"""Draws `specs.Progress` on stderr: a line for each finished stage, and a live line for the one that runs.

In a terminal the live line appears when a stage has taken two seconds. Anywhere else only plain lines are written.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgedistill.cli import output

if TYPE_CHECKING:
    from rich.text import Text

LIVE_AFTER_S = 2.0
BAR = 24
REFRESH_HZ = 4  # few, as each one takes time from a training that may have one core


@dataclass(frozen=True)
class Line:
    """A stage that has ended."""

    stage: str
    seconds: float
    note: str

    @property
    def cached(self) -> bool:
        """Whether the store had it already."""
        return self.note == "already done"


@dataclass
class Running:
    """The stage that runs: when it began, and how many of its units are done since `counted_from`."""

    stage: str
    began: float
    counted_from: float
    total: int = 0
    unit: str = ""
    units: int = 0
    facts: dict[str, float] = field(default_factory=dict)


class Watch:
    """A `Progress` that draws; a context manager, so that the terminal is put right whatever happens."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.lines: list[Line] = []
        self._clock = clock
        self._running: Running | None = None
        self._console: Any = None
        self._live: Any = None

    def __enter__(self) -> Self:
        if output.is_quiet():
            return self
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        if not terminal:
            return self
        from rich.console import Console
        from rich.live import Live

        # A copy of stderr: while a converter runs, the real one is sent to nowhere, and the line must go on.
        file = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors="replace")
        self._console = Console(file=file, highlight=False)
        self._live = Live(
            console=self._console,
            get_renderable=self.live_line,
            refresh_per_second=REFRESH_HZ,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed, self._running = self._running, None
        if self._live:
            self._live.stop()
        if failed and error:
            self._write("✗", "red", failed.stage, self._clock() - failed.began, "stopped here")
        elif failed:
            self._close(failed, "")

    def begin(self, stage: str, total: int = 0, unit: str = "step") -> None:
        """A stage starts, or the one that runs says how much there is to do."""
        now, running = self._clock(), self._running
        # A stage begins as `distil:warm`; its own code, which does not know where it runs, then begins `warm`.
        if running and f":{running.stage}".endswith(f":{stage}"):
            self._running = Running(running.stage, running.began, now, total, unit)
            return
        if running:
            self._close(running, "")
        self._running = Running(stage, now, now, total, unit)

    def advance(self, units: int = 1, **facts: float) -> None:
        """More units are done."""
        if self._running:
            self._running.units += units
            self._running.facts.update(facts)

    def end(self, note: str = "") -> None:
        """The stage is finished."""
        if self._running:
            self._close(self._running, note)

    def _close(self, running: Running, note: str) -> None:
        self._running = None
        line = Line(running.stage, self._clock() - running.began, note)
        self.lines.append(line)
        self._write("·" if line.cached else "✓", "dim" if line.cached else "green", line.stage, line.seconds, note)

    def _write(self, mark: str, style: str, stage: str, seconds: float, note: str) -> None:
        if output.is_quiet():
            return
        text = f"{output.clean(stage):<18} {seconds:7.1f} s  {output.clean(note)}".rstrip()
        if self._console:
            self._live.refresh()  # else the line of the stage that has ended is drawn once more, below its result
            self._console.print(output.styled(mark, style) + output.styled(f" {text}"), soft_wrap=True)
        else:
            word = {"✗": "failed", "·": "cached", "✓": "done"}[mark]
            print(f"{word:<6} {text}", file=sys.stderr, flush=True)

    def live_line(self) -> Text:
        """The line of the stage that runs; empty before it has taken two seconds."""
        running, now = self._running, self._clock()
        if running is None or now - running.began < LIVE_AFTER_S:
            return output.styled("")
        line = output.styled(f"  {running.stage:<18} {now - running.began:7.1f} s  ")
        line.no_wrap, line.overflow = True, "ellipsis"
        if running.total:
            done = min(1.0, running.units / running.total)
            line.append("━" * round(done * BAR), style="green")
            line.append("─" * (BAR - round(done * BAR)), style="dim")
            line.append(f" {running.units:,}/{running.total:,} {running.unit}")
        elapsed = now - running.counted_from
        rate = running.units / elapsed if elapsed > 0 else 0.0
        if rate and running.total > running.units:
            line.append(f"  {clock((running.total - running.units) / rate)} left")
        for name, value in running.facts.items():
            line.append(f"  {output.clean(name)} {value:.4g}")
        if rate:
            line.append(f"  {rate:,.3g}/s")
        return line


def clock(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
