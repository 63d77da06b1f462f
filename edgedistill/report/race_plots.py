"""Plots of a comparison: the ratio and its interval, each pair of launches, all inferences, a long run, the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgedistill.report.palette import Palette
from edgedistill.report.panel import ROW, Panel, as_rows, row_label, ticks
from edgedistill.report.timing_plots import budget_panels, timing_panels
from edgedistill.specs import Check, Comparison, RatioInterval, Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes


ITSELF = "baseline / baseline"


def panels(checks: Sequence[Check], comparison: Comparison | None, measured: Side | None = None) -> list[Panel]:
    """Every plot that there is something for; `measured` is a file that is compared with none."""
    if comparison is None:
        return [*(timing_panels([("", measured)], paired=False) if measured else ()), *budget_panels(checks)]
    sides = ("baseline", comparison.baseline), ("candidate", comparison.candidate)
    timed = timing_panels(sides, paired=comparison.interleaved)
    return [_ratio_panel(comparison), *timed, *budget_panels(checks)]


def _ratio_panel(seen: Comparison) -> Panel:
    first = "time to the first token" if seen.speeds else "candidate / baseline"
    per_token = {"prefill": "time per token read", "decode": "time per token written"}
    ratios = [(first, seen.latency), *((per_token.get(name, name), told) for name, told in seen.speeds.items())]
    ratios += [(ITSELF, seen.itself)] if seen.itself else []
    told = "; ".join(
        f"{name}: {item.ratio:.3f}, {item.confidence:.0%} interval {item.low:.3f} to {item.high:.3f}"
        for name, item in ratios
    )
    height = ROW * len(ratios) + 1.0
    return Panel("ratio", "Latency against the baseline", told, height,
                 lambda axes, colours: _ratio(axes, colours, ratios, seen.tolerance), rows=True)  # fmt: skip


def _ratio(axes: Axes, colours: Palette, rows: Sequence[tuple[str, RatioInterval]], tolerance: float) -> None:
    edges = [edge for _, item in rows for edge in (item.low, item.high)] + [1.0, 1 + tolerance]
    margin = 0.08 * (max(edges) - min(edges))
    axes.set_xlim(min(edges) - margin, max(edges) + margin)
    axes.axvline(1 + tolerance, color=colours.bad, linewidth=1.6)
    axes.axvline(1.0, color=colours.muted, linewidth=1)
    for place, (name, item) in enumerate(rows):
        colour = colours.muted if name == ITSELF else colours.accent
        axes.plot([item.low, item.high], [place + 0.1] * 2, color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot([item.ratio], [place + 0.1], "o", color=colour, markersize=7)
        row_label(axes, colours, place - 0.28, name, f"{item.ratio:.3f}")
    as_rows(axes, len(rows))
    axes.set_xlabel(f"1 is the baseline; red: the limit, {1 + tolerance:g}")
    axes.xaxis.set_major_locator(ticks(5))
