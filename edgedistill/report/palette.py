"""Colours of a plot: those of the page, which follow light and dark mode, or those of paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgedistill.report import svg


@dataclass(frozen=True)
class Palette:
    """Colours as `#rrggbb`."""

    ink: str
    muted: str
    rule: str
    accent: str
    soft: str
    card: str
    bad: str

    def style(self) -> dict[Any, Any]:
        """Matplotlib's settings with these colours."""
        swap = {svg.INK: self.ink, svg.MUTED: self.muted, svg.RULE: self.rule}
        return {key: swap.get(value, value) if isinstance(value, str) else value for key, value in svg.STYLE.items()}


PAGE = Palette(svg.INK, svg.MUTED, svg.RULE, svg.ACCENT, svg.SOFT, svg.CARD, svg.BAD)
PAPER = Palette("#17191e", "#5a616e", "#e2e4e8", "#2450d8", "#8d99b0", "#ffffff", "#b3201a")  # the page's light mode
