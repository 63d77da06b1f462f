"""The plan's Pareto front as a picture, and its predictions beside what was measured."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from edgedistill.report import labels
from edgedistill.report.data import ReportData
from edgedistill.report.headline import on_host, title
from edgedistill.report.svg import ACCENT, BAD, CARD, INK, MUTED, STYLE, render
from edgedistill.report.text import clean, figure, percent
from edgedistill.specs import FrontPoint, Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, PANEL = 5.0, 2.45  # inches of 72 px
LEAST_LOSS = 0.01  # percent; the axis is logarithmic
# The page's light colours, for a picture that has no page around it (templates/style.css.j2).
ALONE = {
    "--ink": "#17191e",
    "--muted": "#5a616e",
    "--rule": "#e2e4e8",
    "--accent": "#2450d8",
    "--soft": "#b9c3d6",
    "--card": "#ffffff",
    "--bad": "#b3201a",
}


def draw_front(plan: Plan, measured: tuple[float, float] | None = None) -> str | None:
    """Expected quality against size, and against latency where it is predicted, as SVG; None: fewer than two students.

    `measured` is the shipped file's size in MB and its share of the teacher's accuracy.
    """
    points = plan.front
    if len(points) < 2:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    panels: list[tuple[str, str, float | None]] = [("size_mb", "file size, MB, log scale", plan.budget.size_mb)]
    if all(point.latency_p95_ms for point in points):
        panels.append(("latency_p95_ms", "predicted latency (p95), ms, log scale", plan.budget.latency_p95_ms))
    height = PANEL * len(panels) + 0.36
    with matplotlib.rc_context(STYLE):
        plot = Figure(figsize=(WIDTH, height))
        for index, (name, label, limit) in enumerate(panels):
            bottom = 0.62 + PANEL * (len(panels) - 1 - index)
            axes = plot.add_axes((0.125, bottom / height, 0.85, (PANEL - 0.72) / height))
            _panel(axes, points, name, limit, measured if name == "size_mb" else None)
            axes.set_xlabel(label, labelpad=4)
        words = "expected loss of accuracy, % of the teacher's; up is better"
        plot.text(0.02, 1 - 0.06 / height, words, ha="left", va="top", color=MUTED)
        chosen = next((point for point in points if point.chosen), points[0])
        told = (
            f"{len(points)} students; chosen: {clean(chosen.student)}, {figure(chosen.size_mb, 'MB')}, expected to "
            f"keep {percent(chosen.expected_quality)} of the teacher's accuracy"
        )
        return render(plot, "front", "Pareto front of the students considered", told)


def draw_alone(plan: Plan) -> str | None:
    """As `draw_front`, as a file of its own: with colours, a size and a ground."""
    svg = draw_front(plan)
    if svg is None:
        return None
    coloured = re.sub(r"var\((--\w+)\)", lambda found: ALONE[found.group(1)], svg)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', coloured)
    assert box is not None  # matplotlib always writes one
    look = "background:#ffffff;font-family:sans-serif"
    head = f'<svg width="{2 * float(box[1]):g}" height="{2 * float(box[2]):g}" style="{look}" '
    return '<?xml version="1.0" encoding="utf-8"?>\n' + coloured.replace("<svg ", head, 1) + "\n"


def _panel(
    axes: Axes, points: tuple[FrontPoint, ...], name: str, limit: float | None, measured: tuple[float, float] | None
) -> None:
    def place(point: FrontPoint) -> tuple[float, float]:
        return float(getattr(point, name)), _loss(point.expected_quality)

    for point in points:
        x, y = place(point)
        sure = point.meets == "sure"
        look: dict[str, Any] = {"markersize": 4.5, "color": MUTED, "markerfacecolor": MUTED if sure else CARD}
        if not point.chosen:
            axes.plot([x], [y], "o", **look)
    marked = [(place(point), "chosen", ACCENT) for point in points if point.chosen]
    for (x, y), _, colour in marked:
        axes.plot([x], [y], "o", color=colour, markersize=9)
    if measured is not None:
        marked.append(((measured[0], _loss(measured[1])), "measured", INK))
        axes.plot(*([value] for value in marked[-1][0]), "x", color=INK, markersize=9, markeredgewidth=2)
    places = [place(point) for point in points] + [where for where, _, _ in marked]
    axes.set_xscale("log")
    axes.set_xlim(min(x for x, _ in places) / 1.3, max(x for x, _ in places) * 1.5)
    axes.set_yscale("log")
    axes.set_ylim(max(y for _, y in places) * 1.5, min(y for _, y in places) / 1.5)
    _ticks(axes.xaxis, *axes.get_xlim())
    _ticks(axes.yaxis, *reversed(axes.get_ylim()))
    taken = [labels.mark(axes, *where) for where in places]
    low, high = axes.get_xlim()
    if limit is not None and low <= limit <= high:
        axes.axvline(limit, color=BAD, linewidth=1.6)
        axes.annotate("limit", (limit, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2), ha="center",
                      textcoords="offset points", color=BAD, fontsize=9.5)  # fmt: skip
        taken.append(labels.upright(axes, limit))
    for where, words, colour in marked:
        taken += labels.name(axes, words, where, taken, colour, 10.5)


def _ticks(axis: Any, low: float, high: float) -> None:
    """Plain numbers on a log axis: powers of ten, and 2 and 5 between them when there is room."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = [base * 10.0**power for power in range(-4, 5) for base in ((1,) if high / low > 60 else (1, 2, 5))]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda tick, _: f"{tick:,.10g}")


def _loss(share: float) -> float:
    """What is lost of the teacher's accuracy, in percent; none is drawn as the least that can be drawn."""
    return max(100 * (1 - share), LEAST_LOSS)


def measured_point(data: ReportData) -> tuple[float, float] | None:
    """The shipped file's size and its share of the teacher's accuracy."""
    row = next((row for row in data.ledger if row.name == data.shipped), None)
    if row is None or row.size_mb is None or not data.ledger[0].quality.correct:
        return None
    return row.size_mb, row.quality.correct / data.ledger[0].quality.correct


def compared(data: ReportData) -> list[dict[str, str]]:
    """Each prediction of the plan beside the measured figure, where there is one of the right kind."""
    chosen, seen = data.plan.chosen, measured_point(data)
    rows: list[dict[str, str]] = []
    if seen is not None:
        size = chosen.size.total_mb
        off = f"{seen[0] / size - 1:+.1%}"
        rows.append(_row("File size", figure(size, "MB"), "computed", figure(seen[0], "MB"), off))
    if seen is not None and chosen.quality is not None:
        told = chosen.quality
        inside = told.low <= seen[1] <= told.high
        rows.append(
            _row("Accuracy, share of the teacher's", percent(told.median),
                 f"{percent(told.low)} to {percent(told.high)}", percent(seen[1]), "inside" if inside else "outside")
        )  # fmt: skip
    lines = [(line.quantity, title(line.quantity), line) for line in chosen.predictions]
    for device, others in chosen.others.items():
        lines += [(f"{device}.{line.quantity}", f"{clean(device)}: {title(line.quantity)}", line) for line in others]
    for name, words, line in lines:
        found = _seen(data, name)
        inside = found is not None and line.low <= found <= line.high
        rows.append(
            _row(words, figure(line.median, line.unit), f"{figure(line.low)} to {figure(line.high, line.unit)}",
                 "not measured" if found is None else figure(found, line.unit),
                 "" if found is None else "inside" if inside else "outside")
        )  # fmt: skip
    return rows


def _seen(data: ReportData, name: str) -> float | None:
    """What was measured of a line: what the gate judged; of the first load, which no budget has, what the host saw."""
    check = next((check for check in data.gate.checks if check.name == name), None)
    if check is not None:
        return check.measured
    shipped = data.measurements.get(data.shipped)
    return shipped.load_ms if name == "first_load_ms" and shipped and on_host(data) else None


def _row(name: str, predicted: str, interval: str, measured: str, verdict: str) -> dict[str, str]:
    return {"name": name, "predicted": predicted, "interval": interval, "measured": measured, "verdict": verdict}
