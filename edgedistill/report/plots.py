"""The report's plots. Each is drawn for a column as narrow as a phone: labels above their row, no legend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from edgedistill.report.axes import log_axis
from edgedistill.report.data import Curve, ReportData
from edgedistill.report.front import draw_front, measured_point
from edgedistill.report.headline import on_host, title, where
from edgedistill.report.svg import ACCENT, BAD, CARD, INK, MUTED, SOFT, STYLE, render
from edgedistill.report.text import clean, figure, limited, percent, shorten
from edgedistill.specs import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.0  # inches of 72 px: 360 px, a phone's column
ROW = 0.56  # inches for a row's label and its mark
LABEL_LENGTH = 38
POINTS = 240  # of a curve; more than a column has pixels is only bytes


def draw(data: ReportData) -> dict[str, str]:
    """Every plot that the data has something for, as SVG by name."""
    import matplotlib

    makers: dict[str, Callable[[ReportData], str | None]] = {
        "accuracy": _accuracy,
        "size": _size,
        "predicted": _predicted,
        "latency": _latency,
        "training": _training,
        "front": lambda data: draw_front(data.plan, measured_point(data)),
    }
    with matplotlib.rc_context(STYLE):
        drawn = {name: make(data) for name, make in makers.items()}
    return {name: svg for name, svg in drawn.items() if svg is not None}


def _rows(labels: Sequence[str], values: Sequence[str], strong: Sequence[bool], *, axis: str) -> tuple[Figure, Axes]:
    """An empty plot with one row per label, written above the row's line, and its figure at the right end."""
    from matplotlib.figure import Figure

    height = ROW * len(labels) + 0.62
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.03, 0.52 / height, 0.94, (height - 0.6) / height))
    axes.set_ylim(len(labels) - 0.25, -0.58)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(axis, labelpad=5)
    across = axes.get_yaxis_transform()
    # On a ground of its own, so that the grid does not cross the words.
    ground = {"facecolor": CARD, "edgecolor": "none", "pad": 1.2}
    for row, (label, shown, bold) in enumerate(zip(labels, values, strong, strict=True)):
        weight, colour = ("bold", ACCENT) if bold else ("normal", INK)
        words: dict[str, Any] = {
            "transform": across,
            "va": "center",
            "fontweight": weight,
            "color": colour,
            "bbox": ground,
        }
        axes.text(0, row - 0.3, shorten(clean(label), LABEL_LENGTH), ha="left", **words)
        axes.text(1, row - 0.3, clean(shown), ha="right", **words)
    return figure, axes


def _accuracy(data: ReportData) -> str | None:
    rows = data.ledger
    if not rows:
        return None
    shipped = [row.name == data.shipped for row in rows]
    shown = [percent(row.quality.accuracy) for row in rows]
    figure, axes = _rows([row.name for row in rows], shown, shipped, axis="accuracy on held-out rows, %, with 95% CI")
    for index, row in enumerate(rows):
        colour = ACCENT if shipped[index] else MUTED
        low, high = 100 * row.quality.low, 100 * row.quality.high
        axes.plot([low, high], [index + 0.1] * 2, color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([100 * row.quality.accuracy], [index + 0.1], "o", color=colour, markersize=7)
    lows, highs = [100 * row.quality.low for row in rows], [100 * row.quality.high for row in rows]
    margin = max(0.5, 0.08 * (max(highs) - min(lows)))
    axes.set_xlim(max(0.0, min(lows) - margin), min(100.5, max(highs) + margin))
    axes.xaxis.set_major_locator(_few_ticks())
    told = "; ".join(
        f"{clean(row.name)} {percent(row.quality.accuracy)}, {percent(row.quality.low)} to {percent(row.quality.high)}"
        for row in rows
    )
    return render(figure, "accuracy", "Accuracy of each model with its 95% interval", told)


def _size(data: ReportData) -> str | None:
    rows = [(row.name, row.size_mb) for row in data.ledger if row.size_mb]
    if not rows:
        return None
    sizes = [size for _, size in rows]
    shipped = [name == data.shipped for name, _ in rows]
    shown = [figure(size, "MB") for size in sizes]
    plot, axes = _rows([name for name, _ in rows], shown, shipped, axis="file size, MB, log scale")
    start = _decade_below(sizes)
    log_axis(axes, start, max(*sizes, data.plan.budget.size_mb or 0.0) * 1.25)
    for index, size in enumerate(sizes):
        colour = ACCENT if shipped[index] else SOFT
        axes.plot([start, size], [index + 0.1] * 2, color=colour, linewidth=8, solid_capstyle="butt")
    _limit(axes, data.plan.budget.size_mb, len(rows))
    told = "; ".join(f"{clean(name)} {figure(size, 'MB')}" for name, size in rows)
    return render(plot, "size", "File size of each model", told)


def _predicted(data: ReportData) -> str | None:
    """Predictions as shares of their limits, so that milliseconds, megabytes and millijoules share one axis."""
    limits = data.plan.budget.limits()
    rows = [item for item in data.plan.chosen.predictions if limits.get(item.quantity)]
    if not rows:
        return None
    shown = [f"{figure(item.median)} of {limited(limits[item.quantity], item.unit)}" for item in rows]
    names = [title(item.quantity) for item in rows]
    plot, axes = _rows(names, shown, [False] * len(rows), axis="predicted, as % of the limit")
    shares = [[100 * part / limits[item.quantity] for part in (item.low, item.median, item.high)] for item in rows]
    most = min(400.0, max(120.0, 1.08 * max(share[2] for share in shares)))
    for index, (low, median, high) in enumerate(shares):
        axes.plot([low, min(high, most)], [index + 0.1] * 2, color=SOFT, linewidth=8, solid_capstyle="butt")
        axes.plot([min(median, most)], [index + 0.1], "o", color=ACCENT, markersize=7, clip_on=False)
    axes.set_xlim(0, most)
    axes.xaxis.set_major_locator(_few_ticks())
    _limit(axes, 100.0, len(rows))
    told = "; ".join(
        f"{names[index]}: median {shown[index]}, {percent(item.confidence, 0)} interval {figure(item.low)} to "
        f"{figure(item.high, item.unit)}"
        for index, item in enumerate(rows)
    )
    return render(plot, "predicted", f"Predicted cost on {where(data)} against the budget; not measured", told)


def _latency(data: ReportData) -> str | None:
    seen = [(row.name, data.measurements[row.name]) for row in data.ledger if row.name in data.measurements]
    if not seen:
        return None
    shown = [f"{figure(item.latency_p50_ms)} ms" for _, item in seen]
    strong = [name == data.shipped for name, _ in seen]
    plot, axes = _rows([name for name, _ in seen], shown, strong, axis="ms per inference on this host, log scale")
    edges = [(item.quantile_ms(0.01), item.quantile_ms(0.99)) for _, item in seen]
    log_axis(axes, min(low for low, _ in edges) / 1.35, max(high for _, high in edges) * 1.35)
    for index, (_, item) in enumerate(seen):
        _spread(axes, index + 0.1, item, ACCENT if strong[index] else MUTED)
    told = "; ".join(
        f"{clean(name)}: median {figure(item.latency_p50_ms)}, 95th percentile {figure(item.latency_p95_ms, 'ms')}"
        for name, item in seen
    )
    heading = "Latency on this machine" if on_host(data) else f"Latency on this host, not on {where(data)}"
    return render(plot, "latency", heading, told)


def _spread(axes: Axes, y: float, item: Measurement, colour: str) -> None:
    """Thin line: 1st to 99th percentile; thick: the middle half; dot: median; tick: 95th percentile."""
    q01, q25, q50, q75, q95, q99 = (item.quantile_ms(q) for q in (0.01, 0.25, 0.5, 0.75, 0.95, 0.99))
    axes.plot([q01, q99], [y, y], color=colour, linewidth=1.4)
    axes.plot([q25, q75], [y, y], color=colour, linewidth=6, solid_capstyle="butt")
    axes.plot([q95, q95], [y - 0.13, y + 0.13], color=colour, linewidth=1.6)
    axes.plot([q50], [y], "o", color=colour, markersize=7)


def _training(data: ReportData) -> str | None:
    curves = [curve for curve in data.curves if curve.points]
    if not curves:
        return None
    from matplotlib.figure import Figure

    each, foot = 1.62, 0.5
    height = each * len(curves) + foot
    plot = Figure(figsize=(WIDTH, height))
    for index, curve in enumerate(curves):
        bottom = foot + each * (len(curves) - 1 - index)
        axes = plot.add_axes((0.115, (bottom + 0.08) / height, 0.865, (each - 0.62) / height))
        _curve(axes, curve)
        if index == len(curves) - 1:
            axes.set_xlabel("step", labelpad=5)
    told = "; ".join(
        f"{clean(curve.stage)}: from {figure(curve.points[0][1])} to {figure(curve.points[-1][1])} "
        f"in {curve.points[-1][0]:,} steps"
        for curve in curves
    )
    return render(plot, "training", "Training loss by step, one panel per stage", told)


def _curve(axes: Axes, curve: Curve) -> None:
    points = _thinned(curve.points)
    axes.plot([step for step, _ in points], [loss for _, loss in points], color=ACCENT, linewidth=1.5)
    axes.set_ylim(bottom=min(0.0, *(loss for _, loss in points)))
    axes.margins(x=0.01)
    axes.yaxis.set_major_locator(_few_ticks(3))
    axes.xaxis.set_major_locator(_few_ticks())
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    words: dict[str, Any] = {"transform": axes.transAxes, "va": "bottom"}
    axes.text(0, 1.07, shorten(clean(curve.stage), LABEL_LENGTH), ha="left", **words)
    axes.text(1, 1.07, f"loss {figure(curve.points[-1][1])}", ha="right", color=MUTED, **words)


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points, each the mean of its neighbours: no sample is favoured."""
    size = -(-len(points) // POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _limit(axes: Axes, limit: float | None, rows: int) -> None:
    """The budget as a mark on every row, named below the last, unless it is outside the axis."""
    low, high = axes.get_xlim()
    if limit is None or not low <= limit <= high:
        return
    axes.vlines([limit] * rows, [row - 0.08 for row in range(rows)], [row + 0.28 for row in range(rows)], color=BAD,
                linewidth=1.8)  # fmt: skip
    axes.annotate("limit", (limit, rows - 0.46), ha="center", va="center", color=BAD, fontsize=9.5,
                  bbox={"facecolor": CARD, "edgecolor": "none", "pad": 1})  # fmt: skip


def _decade_below(values: Iterable[float]) -> float:
    """The nearest of 1, 2, 5 times a power of ten that is at most half of the smallest value: where bars start."""
    least = min(values) / 2
    steps = [base * 10.0**power for power in range(-9, 7) for base in (1, 2, 5)]
    return max((step for step in steps if step <= least), default=steps[0])


def _few_ticks(count: int = 5) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=count, steps=[1, 2, 5, 10])
