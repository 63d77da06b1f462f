"""Recording a phone's power with Perfetto while a launch runs: config, start, stop, the trace pulled and read.

The `perfetto` program belongs to Android since version 10 and may be used by the shell user; power rails are there on
Pixel 6 and later, battery counters on most phones.
"""

from __future__ import annotations

import re
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TypeVar

from edgedistill.errors import DataError, InfrastructureError
from edgedistill.parsers import dumpsys_battery, perfetto
from edgedistill.runners._session import Session
from edgedistill.runners._transport import SHELL_S

T = TypeVar("T")
START_S = 15  # where the service does not run, the program may wait for it
POLL_MS = 100  # the shortest that Perfetto takes
SETTLE_S, IDLE_S = 1.0, 2.0  # after the recording was started; of the pause whose power is the idle power
TRACES = "/data/misc/perfetto-traces"  # the only folder that Android lets it write to
CONFIG = """buffers {{ size_kb: 16384 fill_policy: RING_BUFFER }}
data_sources {{ config {{ name: "android.power" android_power_config {{
battery_poll_ms: {poll_ms} collect_power_rails: true
battery_counters: BATTERY_COUNTER_CAPACITY_PERCENT battery_counters: BATTERY_COUNTER_CHARGE
battery_counters: BATTERY_COUNTER_CURRENT{voltage} }} }} }}
duration_ms: {duration_ms}
"""
VOLTAGE = " battery_counters: BATTERY_COUNTER_VOLTAGE"  # since Android 14; older ones refuse the whole config


@dataclass(frozen=True)
class Recorded:
    """What Perfetto saw of one launch; `why` there is no trace."""

    trace: perfetto.PowerTrace | None = None
    battery_v: float | None = None
    started_s: float = 0.0  # time since boot from which the device did nothing for IDLE_S
    why: str = ""


def available(session: Session) -> bool:
    """Whether the device has the program."""
    return session.runner == "adb" and not session.shell("command -v perfetto >/dev/null").status


def record(session: Session, limit_s: float, launch: Callable[[], T], *, pause: bool) -> tuple[T, Recorded]:
    """Run `launch` while Perfetto records. Where it cannot, the launch runs all the same, and `why` says so.

    `pause`: for a launch that does not pause itself, so that the idle power is recorded too.

    Raises:
        InfrastructureError: the device was lost; whatever `launch` raises.
    """
    name = f"edgedistill-{secrets.token_hex(6)}.pftrace"
    folder = session.check(f"[ -d {TRACES} ] && echo {TRACES} || echo {quote(session.folder)}", "looking around")
    path = f"{folder.strip()}/{name}"
    process, why = _start(session, path, limit_s)
    if not process:
        return launch(), Recorded(why=f"Perfetto does not record: {why}")
    ended, started_s = False, 0.0
    try:
        if pause:
            time.sleep(SETTLE_S)
            started_s = uptime(session)[0]
            time.sleep(IDLE_S)
        done = launch()
        ended = True
    finally:
        _stop(session, process, path, remove=not ended)
    try:
        with tempfile.TemporaryDirectory(prefix="edgedistill-") as here:
            session.pull(path, Path(here, name))
            return done, Recorded(perfetto.parse(Path(here, name).read_bytes()), _volts(session), started_s)
    except DataError as error:
        return done, Recorded(why=f"Perfetto: {error}")
    finally:
        session.shell(f"rm -f {quote(path)}")


def _start(session: Session, path: str, limit_s: float) -> tuple[str, str]:
    """The process id; empty, with the reason, when it does not start."""
    told = ""
    for voltage in (VOLTAGE, ""):
        config = CONFIG.format(poll_ms=POLL_MS, voltage=voltage, duration_ms=int((limit_s + 2 * SHELL_S) * 1000))
        script = f"timeout {START_S} perfetto --background --txt -c - -o {quote(path)} 2>&1 <<'CONFIG'\n{config}CONFIG"
        ended = session.shell(script)
        told = ended.stdout.strip()
        if not ended.status and (found := re.search(r"^(\d{1,9})$", told, re.M)):
            return found[1], ""
    return "", told.splitlines()[-1][:200] if told else "it says nothing"


def _stop(session: Session, process: str, path: str, *, remove: bool) -> None:
    """End the recording and wait until the file is whole; a lost device is told by what comes next."""
    wait = f"kill -TERM {process} 2>/dev/null; i=0; while kill -0 {process} 2>/dev/null && [ $i -lt 100 ]; do sleep 0.1"
    script = f"{wait}; i=$((i+1)); done" + (f"; rm -f {quote(path)}" if remove else "")
    try:
        session.shell(script)
    except InfrastructureError:
        if not remove:  # else what stopped the launch is what is told
            raise


def uptime(session: Session) -> tuple[float, float]:
    """The device's time since boot, and how long it took to ask: it may be that much later than the call.

    Raises:
        InfrastructureError: it was lost, or does not tell.
    """
    begin = time.monotonic()
    told = session.check("cat /proc/uptime", "reading the time since boot").split()
    slack_s = time.monotonic() - begin
    if not told or not re.fullmatch(r"\d{1,9}(\.\d+)?", told[0]):
        raise InfrastructureError(f"{session.name}: /proc/uptime holds no time")
    return float(told[0]), slack_s


def _volts(session: Session) -> float | None:
    try:
        millivolts = dumpsys_battery.parse(session.shell("dumpsys battery 2>/dev/null").stdout).voltage_mv
    except DataError:
        return None
    return millivolts / 1e3 if millivolts else None
