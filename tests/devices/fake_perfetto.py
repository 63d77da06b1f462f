"""Stands for Android's `perfetto` program: reads its text config, goes to the background, prints its process id, and
writes a trace when it is told to end. A phone that draws 2 W; rails and battery as the config asks for them.

It writes the wire format by itself, so that a mistake of the reader is not repeated here.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from types import FrameType

MILLIWATTS = 2000


def varint(value: int) -> bytes:
    data = b""
    value &= 2**64 - 1
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def packet(asked: str, modes: str, now_ns: int, first: bool) -> bytes:
    data = number(8, now_ns)
    if "collect_power_rails: true" in asked and "rails" in modes:
        rails = b""
        if first:
            rails = message(1, number(1, 0) + message(2, b"S2M_VDD_CPUCL2") + message(3, b"cpu") + number(4, 1000))
            rails += message(1, number(1, 1) + message(2, b"VSYS_PWR_DISPLAY"))
        uj = now_ns // 1000 * MILLIWATTS // 1000
        rails += message(2, number(1, 0) + number(2, now_ns // 10**6) + number(3, uj))
        rails += message(2, number(1, 1) + number(2, now_ns // 10**6) + number(3, 5_000_000))
        data += message(40, rails)
    if "BATTERY_COUNTER_CURRENT" in asked and "battery" in modes:
        drained = MILLIWATTS * 1000 // 4 + now_ns // 10**8 % 7
        data += message(38, number(1, 2_500_000) + number(3, drained))
    return message(1, data)


def main() -> None:
    modes, out = os.environ["FAKE_PERFETTO"], sys.argv[sys.argv.index("-o") + 1]
    asked = sys.stdin.read()
    if "refuse" in modes:
        sys.exit("[perfetto_cmd.cc:1] Could not connect to the traced socket")
    if "BATTERY_COUNTER_VOLTAGE" in asked:  # as a phone before Android 14 says it
        sys.exit('config:3:1 error: unknown value "BATTERY_COUNTER_VOLTAGE"')
    poll_s = int(re.findall(r"battery_poll_ms: (\d+)", asked)[0]) / 1e3
    if child := os.fork():
        print(child)
        return
    os.setsid()
    for descriptor in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    ending: list[bool] = []

    def end(_: int, __: FrameType | None) -> None:
        ending.append(True)

    signal.signal(signal.SIGTERM, end)
    trace = b""
    while not ending:
        trace += packet(asked, modes, time.clock_gettime_ns(time.CLOCK_BOOTTIME), not trace)
        time.sleep(poll_s)
    if "cut" in modes:
        trace = trace[:-7]
    partial = Path(f"{out}.partial")
    partial.write_bytes(trace)
    partial.replace(out)


main()
