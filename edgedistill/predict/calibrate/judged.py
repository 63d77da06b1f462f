"""Held-out errors beside the intervals that were forecast for them: the rows of the table that ships with the fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgedistill.predict.calibrate import crossval, intervals
from edgedistill.predict.calibrate.crossval import HeldOut
from edgedistill.predict.calibrate.samples import Floats


class Judged(NamedTuple):
    """Errors, whether each lies in its interval, and the interval's log width; both None where nothing tells them."""

    held: HeldOut
    inside: NDArray[np.bool_] | None
    width: Floats | None
    few: bool

    def figure(self, name: str, split: str) -> dict[str, Any]:
        """The row: errors in percent, coverage with its own 95% interval, the median of high over low."""
        held, inside, width = self.held, self.inside, self.width
        traced = held.error[held.traced]
        return {
            "class": name,
            "split": split,
            "rows": len(held.error),
            "keys": len(set(held.key)),
            "mdape": round(crossval.mdape(held.error), 1),
            "mdape_traced": round(crossval.mdape(traced), 1) if traced.size else None,
            "mdape_before": None if held.before is None else round(crossval.mdape(held.before), 1),
            "within_1.5x": round(crossval.within(held.error, 1.5)),
            "within_2x": round(crossval.within(held.error, 2.0)),
            "coverage_80": round(100 * float(inside.mean())) if inside is not None else None,
            "coverage_95_sure": [round(100 * end) for end in intervals.sure(inside, held.key)]
            if inside is not None
            else None,
            "width": round(float(np.exp(np.median(width))), 2) if width is not None else None,
            "few": self.few,
        }


def together(parts: Sequence[Judged]) -> Judged:
    """Several classes as one: rows of each beside those of the others, each in its own class's interval."""
    told = [one for one in parts if one.inside is not None]
    before = [one.held.before for one in told if one.held.before is not None]
    held = HeldOut(
        np.concatenate([one.held.error for one in told]),
        sum((one.held.key for one in told), ()),
        np.concatenate([one.held.traced for one in told]),
        np.concatenate(before) if len(before) == len(told) else None,
    )
    inside = np.concatenate([one.inside for one in told if one.inside is not None])
    width = np.concatenate([one.width for one in told if one.width is not None])
    return Judged(held, inside, width, all(one.few for one in told))
