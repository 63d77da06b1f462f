"""Writes report.html and report.md."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edgedistill.errors import InfrastructureError
from edgedistill.report import text
from edgedistill.report.data import ReportData
from edgedistill.report.panel import Panel, as_svg
from edgedistill.report.plots import draw
from edgedistill.report.timing_plots import budget_panels, timing_panels
from edgedistill.report.view import view
from edgedistill.specs import Side

TEMPLATES = Path(__file__).with_name("templates")


def write_report(folder: Path, data: ReportData) -> tuple[Path, Path]:
    """Write `report.html` (nothing is loaded from outside it) and `report.md` into `folder`, and return their paths.

    Raises:
        InfrastructureError: if the folder cannot be written to.
    """
    shown = view(data)
    # The plots are our own markup around texts that the SVG writer escaped; everything else is escaped by the template.
    plots = {name: Markup(svg) for name, svg in {**draw(data), **as_svg(_panels(data))}.items()}
    pages = {
        "report.html": html_pages().get_template("report.html.j2").render(**shown, plots=plots),
        "report.md": markdown_pages().get_template("report.md.j2").render(**shown),
    }
    try:
        for name, page in pages.items():
            (folder / name).write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InfrastructureError(f"{folder}: cannot write the report ({error.strerror}).") from None
    return folder / "report.html", folder / "report.md"


def _panels(data: ReportData) -> list[Panel]:
    """What the gate judged, and how the shipped file's time spreads over its launches."""
    seen = data.measurements.get(data.shipped)
    timed = timing_panels([("", Side.of(seen))], paired=False) if seen else []
    return [*budget_panels(data.gate.checks), *timed]


def html_pages() -> Environment:
    """The HTML templates; every value is escaped and free of characters that HTML cannot hold."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )


def markdown_pages() -> Environment:
    """The Markdown templates; every value is escaped on its way out, as autoescaping knows HTML only."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: text.markdown(value) if isinstance(value, str) else value,
    )


def _clean(value: object) -> object:
    return text.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
