"""XCTest's performance lines of an `xcodebuild test` log: `… measured [METRIC, UNIT] average: …, values: […]`."""

from __future__ import annotations

import re

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, lines_of, number
from edgedistill.specs import Spec

_MEASURED = re.compile(
    rf"'?-?\[?([\w.$]+)[ /.]([\w().$]+)\]?'? measured \[([^,\]]+), ([^\]]+)\] average: ({NUMBER}), "
    rf"relative standard deviation: ({NUMBER})%, values: \[([^\]]*)\]"
)


class Measured(Spec):
    """One metric of one test. `values` are as told, `unit` too (s, seconds, kB, …)."""

    suite: str
    test: str
    metric: str
    unit: str
    average: float
    relative_std: float
    values: tuple[float, ...]

    @property
    def values_ms(self) -> tuple[float, ...] | None:
        """The samples in ms; None when the metric is no time."""
        factor = {"s": 1e3, "seconds": 1e3, "ms": 1.0, "milliseconds": 1.0, "µs": 1e-3, "ns": 1e-6}.get(self.unit)
        return None if factor is None else tuple(value * factor for value in self.values)


def parse(text: str) -> tuple[Measured, ...]:
    """Every measured metric, in order.

    Raises:
        DataError: there is none, or one whose line was cut off.
    """
    found = []
    for line in lines_of(text):
        seen = _MEASURED.search(line)
        if not seen:
            if " measured [" in line:
                raise DataError(f"a measured line that was cut off: {line.strip()[-100:]!r}")
            continue
        found.append(Measured(
            suite=seen[1],
            test=seen[2],
            metric=seen[3].strip(),
            unit=seen[4].strip(),
            average=number(seen[5], "average"),
            relative_std=number(seen[6], "deviation") / 100,
            values=tuple(number(value, "value") for value in seen[7].split(", ") if value.strip()),
        ))  # fmt: skip
    if not found:
        raise DataError("no ' measured [METRIC, UNIT]' line: the tests have no measure block, or did not run")
    return tuple(found)
