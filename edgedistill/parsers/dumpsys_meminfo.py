"""`adb shell dumpsys meminfo PACKAGE`: the memory of one app, in KiB as Android tells it."""

from __future__ import annotations

import re

from edgedistill.errors import DataError
from edgedistill.parsers._text import lines_of
from edgedistill.specs import Spec

KIBI = 1024 / 1e6
_SUMMARY = re.compile(r"\bTOTAL (PSS|RSS|SWAP PSS|SWAP \(KB\)):\s*([\d,]{1,15})")


class AppMemory(Spec):
    """One process, in MB of 10^6 bytes. `pss_mb` shares what is shared among those that share it. None: not told."""

    pid: int
    process: str
    pss_mb: float
    rss_mb: float | None = None
    swap_pss_mb: float | None = None
    native_heap_mb: float | None = None


def parse(text: str) -> AppMemory:
    """The dump of one process.

    Raises:
        DataError: no process, several, or its total was cut off.
    """
    lines = lines_of(text)
    heads = [found for line in lines if (found := re.search(r"MEMINFO in pid (\d{1,9}) \[([^\]]*)\]", line))]
    if missing := next((line for line in lines if "No process found for" in line), None):
        raise DataError(f"{missing.strip()[:120]}: the app does not run")
    if len(heads) != 1:
        raise DataError(f"{len(heads)} processes: `dumpsys meminfo PACKAGE` or PID, of one process, is needed")
    told: dict[str, float] = {}
    native = row = None
    for line in lines:
        for name, value in _SUMMARY.findall(line):
            told.setdefault(name, _kibi(value))
        if found := re.match(r"^\s*TOTAL:?\s+(\d{1,12})\b", line):
            row = _kibi(found[1]) if row is None else row
        elif found := re.match(r"^\s*Native Heap:?\s+(\d{1,12})\b", line):
            native = _kibi(found[1]) if native is None else native
    pss = told.get("PSS", row)
    if pss is None:
        raise DataError("no TOTAL line: the dump was cut off")
    return AppMemory(
        pid=int(heads[0][1]),
        process=heads[0][2],
        pss_mb=pss,
        rss_mb=told.get("RSS"),
        swap_pss_mb=told.get("SWAP PSS"),
        native_heap_mb=native,
    )


def _kibi(text: str) -> float:
    digits = text.replace(",", "")
    if not digits:
        raise DataError(f"{text!r} is no number of KiB")
    return int(digits) * KIBI
