"""Plots of what was timed, for one file or for two: each launch, all inferences, a long run; and of the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edgedistill.report.axes import log_axis
from edgedistill.report.headline import title, value
from edgedistill.report.palette import Palette
from edgedistill.report.panel import ROW, Panel, as_rows, row_label, ticks
from edgedistill.report.text import figure, limited
from edgedistill.specs import Check, Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Named = Sequence[tuple[str, Side]]  # one file, or the baseline and the candidate


def timing_panels(sides: Named, *, paired: bool) -> list[Panel]:
    """The plots that the sides have something for; `paired` says that launches of both belong together."""
    launches = [(name, side.launch_medians_ms) for name, side in sides if side.launch_medians_ms]
    spread = [(name, side.quantiles_ms) for name, side in sides if side.quantiles_ms]
    runs = [(name, side.sustained_ms) for name, side in sides if side.sustained_ms]
    speeds = [
        (name, side.launch_tokens_per_s["decode"]) for name, side in sides if "decode" in side.launch_tokens_per_s
    ]
    sample = "time to the first token, " if speeds else ""
    found = []
    if speeds:
        told = "; ".join(f"{_said(name)}{figure(min(v))} to {figure(max(v), 'tokens/s')}" for name, v in speeds)
        found.append(Panel("writing", "Speed of writing, each launch", told, 2.3, lambda axes, colours: _launches(
            axes, colours, speeds, paired=paired, unit="tokens/s")))  # fmt: skip
    if launches:
        told = "; ".join(f"{_said(name)}{figure(min(v), 'ms')} to {figure(max(v), 'ms')}" for name, v in launches)
        found.append(Panel("launches", f"{sample}median of each launch".capitalize(), told, 2.3,
                           lambda axes, colours: _launches(axes, colours, launches, paired=paired)))  # fmt: skip
    if spread:
        told = "; ".join(
            f"{_said(name)}half in {figure(v[50], 'ms')}, 95% in {figure(v[95], 'ms')}" for name, v in spread
        )
        caption = f"{sample}all {'texts' if speeds else 'inferences'}".capitalize()
        found.append(Panel("distribution", caption, told, 2.4,
                           lambda axes, colours: _distribution(axes, colours, spread)))  # fmt: skip
    if runs:
        told = "; ".join(f"{_said(name)}from {figure(v[0], 'ms')} to {figure(v[-1], 'ms')}" for name, v in runs)
        found.append(Panel("sustained", "A long run, median of each window", told, 2.3,
                           lambda axes, colours: _sustained(axes, colours, runs)))  # fmt: skip
    return found


def budget_panels(checks: Sequence[Check]) -> list[Panel]:
    """The lines that have a measured cost and a limit, as bars; none when there are none."""
    bars = [
        check
        for check in checks
        if check.measured is not None and check.relation == "≤" and check.limit > 0 and check.unit not in ("", "x")
    ]
    told = "; ".join(
        f"{title(check.name)} {figure(check.measured, check.unit)} of {limited(check.limit, check.unit)}"
        for check in bars
    )
    height = ROW * len(bars) + 0.9
    panel = Panel("budget", "Measured or computed, as % of the limit", told, height,
                  lambda axes, colours: _budget(axes, colours, bars), rows=True)  # fmt: skip
    return [panel] if bars else []


def _said(name: str) -> str:
    return f"{name} " if name else ""


def _styled(
    axes: Axes, colours: Palette, series: Sequence[tuple[str, Sequence[float]]]
) -> Iterator[tuple[Sequence[float], str, str]]:
    """Values, colour and mark of each; names stand above the plot, so that colour alone does not tell them apart."""
    looks = [(colours.muted, "o", "●"), (colours.accent, "D", "◆")][-len(series) :]  # the last one is the one judged
    for place, ((name, values), (colour, marker, mark)) in enumerate(zip(series, looks, strict=True)):
        if name:
            side = "right" if place else "left"
            axes.text(place, 1.04, f"{mark} {name}", ha=side, va="bottom", color=colour, transform=axes.transAxes)
        yield values, colour, marker


def _launches(
    axes: Axes, colours: Palette, series: Sequence[tuple[str, Sequence[float]]], *, paired: bool, unit: str = "ms"
) -> None:
    line = "-" if paired else "none"
    for values, colour, marker in _styled(axes, colours, series):
        turns = range(1, len(values) + 1)
        axes.plot(turns, values, marker=marker, markersize=5, color=colour, linestyle=line, linewidth=1)
    axes.set_xlabel("pair of launches" if paired else "launch")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(ticks(6, whole=True))
    axes.yaxis.set_major_locator(ticks(4))
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:,.0f}" if tick >= 100 else f"{tick:.4g}")
    axes.margins(y=0.2)


def _distribution(axes: Axes, colours: Palette, series: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Share of inferences that took at most so long, up to the 99th percentile: the rest is the machine's."""
    for values, colour, _ in _styled(axes, colours, series):
        axes.plot(values[:100], range(100), color=colour, linewidth=1.8)
    fastest, slowest = min(values[1] for _, values in series), max(values[99] for _, values in series)
    axes.xaxis.set_major_locator(ticks(5))
    if slowest > 5 * fastest > 0:
        log_axis(axes, fastest / 1.2, slowest * 1.2)
    axes.set_ylim(0, 100)
    axes.set_xlabel("ms")
    axes.set_ylabel("% took at most")
    axes.yaxis.set_major_locator(ticks(4))


def _sustained(axes: Axes, colours: Palette, series: Sequence[tuple[str, Sequence[float]]]) -> None:
    for values, colour, _ in _styled(axes, colours, series):
        axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("window")
    axes.set_ylabel("ms")
    axes.xaxis.set_major_locator(ticks(6, whole=True))


def _budget(axes: Axes, colours: Palette, checks: Sequence[Check]) -> None:
    """Shares of the limits, so that megabytes and milliseconds share one axis; a bar that leaves it is cut at 400 %."""
    shares = [100 * (check.measured or 0.0) / check.limit for check in checks]
    most = min(400.0, max(110.0, 1.05 * max(shares)))
    axes.axvline(100, color=colours.bad, linewidth=1.6)
    for place, (check, share) in enumerate(zip(checks, shares, strict=True)):
        colour = colours.bad if share > 100 else colours.accent
        axes.plot([0, min(share, most)], [place + 0.12] * 2, color=colour, linewidth=8, solid_capstyle="butt")
        shown = f"{value(check.name, check.measured, check.unit)} of {limited(check.limit, check.unit)}"
        row_label(axes, colours, place - 0.26, title(check.name), shown)
    axes.set_xlim(0, most)
    as_rows(axes, len(checks))
    axes.set_xlabel("% of the limit")
