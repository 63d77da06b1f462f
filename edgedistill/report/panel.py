"""A plot that can stand in a page as SVG and on a sheet as PNG and PDF; drawn for a column as narrow as a phone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.report.palette import PAGE, PAPER, Palette
from edgedistill.report.svg import render
from edgedistill.report.text import clean, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 5.0  # inches of 72 px: 360 px, a phone's column
ROW = 0.56  # inches for a row's label and its mark
DPI = 200


@dataclass(frozen=True)
class Panel:
    """One plot: its name, what it shows in one line, the same in words for those who do not see it, and its drawing.

    `height` is in inches; `rows` says that labels stand above their rows and need no margin.
    """

    name: str
    caption: str
    told: str
    height: float
    draw: Callable[[Axes, Palette], None]
    rows: bool = False


def as_svg(wanted: Sequence[Panel]) -> dict[str, str]:
    """The panels as SVG for a page, by name."""
    import matplotlib
    from matplotlib.figure import Figure

    drawn = {}
    with matplotlib.rc_context(PAGE.style()):
        for panel in wanted:
            sheet = Figure(figsize=(WIDTH, panel.height))
            left = 0.03 if panel.rows else 0.16
            axes = sheet.add_axes((left, 0.52 / panel.height, 0.96 - left, (panel.height - 0.82) / panel.height))
            panel.draw(axes, PAGE)
            drawn[panel.name] = render(sheet, panel.name, panel.caption, panel.told)
    return drawn


def write_sheet(folder: Path, heading: str, sentence: str, wanted: Sequence[Panel]) -> tuple[Path, Path]:
    """One sheet with all panels as `comparison.png` and `comparison.pdf`, for people who send files.

    Raises:
        OSError: the folder cannot be written to.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**PAPER.style(), "pdf.fonttype": 42}):
        columns = 1 if len(wanted) == 1 else 2
        rows = -(-len(wanted) // columns)
        sheet = Figure(figsize=(1.2 * WIDTH * columns, 3.3 * rows + 1.4), facecolor=PAPER.card)
        words: dict[str, Any] = {"ha": "left", "va": "top", "wrap": True}
        height = sheet.get_figheight()
        sheet.text(0.03, 1 - 0.22 / height, shorten(clean(heading), 70), fontsize=15, fontweight="bold", **words)
        sheet.text(0.03, 1 - 0.58 / height, shorten(clean(sentence), 300), color=PAPER.muted, **words)
        grid = sheet.add_gridspec(
            rows, columns, left=0.07, right=0.97, hspace=0.75, wspace=0.22, bottom=0.55 / height, top=1 - 1.55 / height
        )
        for place, panel in enumerate(wanted):
            axes = sheet.add_subplot(grid[place // columns, place % columns])
            axes.set_title(panel.caption, loc="left", fontsize=11.5, fontweight="bold", pad=28)
            panel.draw(axes, PAPER)
        paths = folder / "comparison.png", folder / "comparison.pdf"
        with warnings.catch_warnings():
            # A name in a script that this font lacks is drawn as boxes; the page has it in the browser's own fonts.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            sheet.savefig(paths[0], dpi=DPI, metadata={"Software": None})
            sheet.savefig(paths[1], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return paths


def as_rows(axes: Axes, count: int) -> None:
    """Make room for rows whose words stand above their marks."""
    axes.set_ylim(count - 0.3, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def row_label(axes: Axes, colours: Palette, y: float, left: str, right: str) -> None:
    """A row's words above its mark, on a ground of their own, so that no line crosses them."""
    ground = {"facecolor": colours.card, "edgecolor": "none", "pad": 1.2}
    words: dict[str, Any] = {"va": "center", "transform": axes.get_yaxis_transform(), "bbox": ground}
    axes.text(0, y, shorten(clean(left), 38), ha="left", **words)
    axes.text(1, y, clean(right), ha="right", **words)


def ticks(count: int, *, whole: bool = False) -> Any:
    """At most so many round ticks."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=count, steps=[1, 2, 5, 10], integer=whole)
