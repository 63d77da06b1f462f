"""Times files on a board with the plain `ssh` and `scp` programs: `--on ssh:USER@HOST`."""

from __future__ import annotations

from collections.abc import Mapping

from edgedistill.runners import How, Job, Timing
from edgedistill.runners._remote import measure_on
from edgedistill.runners._ssh import Ssh
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
    transport = Ssh(how.where if how else "")
    return measure_on(transport, jobs, launches=launches, timing=timing, how=how, progress=progress)
