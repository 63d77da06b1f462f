"""Times files on an Android device with the plain `adb` program: `--on adb:SERIAL`."""

from __future__ import annotations

from collections.abc import Mapping

from edgedistill.runners import How, Job, Timing
from edgedistill.runners._adb import Adb
from edgedistill.runners._remote import measure_on
from edgedistill.specs import Measurement, Progress


def measure_many(
    jobs: Mapping[str, Job],
    *,
    launches: int = 3,
    timing: Timing | None = None,
    how: How | None = None,
    progress: Progress | None = None,
) -> dict[str, Measurement]:
    """Time every job in `launches` fresh processes on the device that `how.where` names; see `Runner` for errors."""
    transport = Adb(how.where if how else "")
    return measure_on(transport, jobs, launches=launches, timing=timing, how=how, progress=progress)
