"""Before a launch: wait until the device is fit, and say what becomes of one that is not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgedistill.errors import InfrastructureError
from edgedistill.runners import How
from edgedistill.runners._device import read_conditions
from edgedistill.runners._fitness import lasting, passing
from edgedistill.runners._session import Session
from edgedistill.specs import Conditions

COOL_DOWN_STEP_S = 5.0


@dataclass
class Waits:
    """What a session had to wait for, and to do again."""

    waited_s: float = 0.0
    repeated: int = 0


def settle(session: Session, how: How, waits: Waits) -> tuple[Conditions, tuple[str, ...]]:
    """Wait until the device is fit to be measured; how it is then, and why it is not fit, if it is not.

    Raises:
        InfrastructureError: it is not fit, and is to be refused then.
    """
    waited = 0.0
    while True:
        seen = read_conditions(session)
        waiting, why = passing(seen), lasting(seen, how)
        if how.unfit == "record":
            return seen, ()
        if not waiting or why or waited >= how.cool_down_s:  # what lasts is not waited for
            return seen, judged(session, how, [*why, *(f"{reason} after {waited:.0f} s" for reason in waiting)])
        step = min(COOL_DOWN_STEP_S, how.cool_down_s - waited)
        time.sleep(step)
        waited += step
        waits.waited_s += step


def judged(session: Session, how: How, reasons: Sequence[str]) -> tuple[str, ...]:
    """The reasons as marks.

    Raises:
        InfrastructureError: there are some, and such a device is to be refused.
    """
    if reasons and how.unfit == "refuse":
        raise InfrastructureError(
            f"{session.name}: not fit to be measured: {'; '.join(reasons)}. Wait longer with --cool-down SECONDS, or "
            "measure all the same with --unfit mark."
        )
    return tuple(reasons)
