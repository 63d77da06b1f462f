"""Axes that several plots share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def log_axis(axes: Axes, low: float, high: float) -> None:
    """A log axis with plain numbers: powers of ten, and 2 and 5 between them when there is room."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(low, high)
    wide = high / low > 500
    ticks = [base * 10.0**power for power in range(-6, 7) for base in ((1,) if wide else (1, 2, 5))]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:,.10g}")
