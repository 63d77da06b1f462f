"""From a matplotlib figure to an SVG that belongs into a page: its colours, accessible, the same bytes each time."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that no one draws with; the page replaces them by its own variables, which follow light and dark mode.
INK, MUTED, RULE = "#010101", "#020202", "#030303"
ACCENT, SOFT, CARD, BAD = "#040404", "#050505", "#060606", "#070707"
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", SOFT: "--soft", CARD: "--card", BAD: "--bad",
}  # fmt: skip
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, readable by a screen reader
    "svg.hashsalt": "edgedistill",
    "text.parse_math": False,  # labels are not trusted, and `$` is a character
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


def render(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element that scales with its column; `name` keeps its ids apart from other figures'."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The browser's own fonts draw the text, so what matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None})
    for prefix, uri in (("", _SVG), ("xlink", _XLINK)):
        ElementTree.register_namespace(prefix, uri)
    root = ElementTree.fromstring(buffer.getvalue())
    _tidy(root, name)
    _describe(root, name, title, description)
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub("#0[1-7]0[1-7]0[1-7]", lambda found: f"var({_VARIABLES[found.group()]})", text)


def _tidy(root: ElementTree.Element, name: str) -> None:
    """Drop what only a stand-alone file needs, and make every id unique in the page."""
    for extra in ("metadata", "defs"):
        for child in root.findall(f"{{{_SVG}}}{extra}"):
            if extra == "metadata" or child.find(f"{{{_SVG}}}style") is not None:
                root.remove(child)
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    for element in root.iter():
        for key, text in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{name}-{text}")
            elif key == f"{{{_XLINK}}}href":
                element.set(key, f"#{name}-{text.removeprefix('#')}")
            elif text.startswith("url(#"):
                element.set(key, f"url(#{name}-{text.removeprefix('url(#')}")
            elif key == "style" and element.tag == f"{{{_SVG}}}text":
                # The page's font; sizes stay.
                element.set(key, re.sub(r"'DejaVu Sans'[^;]*", "inherit", text))


def _describe(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    """Say to those who do not see it what the picture shows."""
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(
            f"{{{_SVG}}}{tag}", {"id": f"{name}-{'title' if tag == 'title' else 'description'}"}
        )
        element.text = text
        root.insert(position, element)
