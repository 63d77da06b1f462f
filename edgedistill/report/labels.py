"""Where the name of a mark goes in a plot: beside it, over no other mark, line or name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, HIGH, MARK, LEAST = 0.6, 1.15, 6.0, 1.0  # of a letter by the font's size; a mark's half side, px
STEPS = 20  # of a line
NEAR = 12.0  # from which distance a line leads to the mark, px
DISTANCES = (9.0, 16.0, 26.0, 38.0, 52.0, 70.0, 90.0)
SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))


class Box(NamedTuple):
    """A rectangle in px of the figure."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Whether they have any place in common."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def within(self, other: Box) -> bool:
        """Whether no part of it is outside."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.bottom <= self.bottom
            and self.top <= other.top
        )


def mark(axes: Axes, x: float, y: float) -> Box:
    """The place of a mark at these data coordinates."""
    middle = _pixels(axes, x, y)
    return Box(middle[0] - MARK, middle[1] - MARK, middle[0] + MARK, middle[1] + MARK)


def upright(axes: Axes, x: float) -> Box:
    """The place of a vertical line."""
    at, area = _pixels(axes, x, axes.get_ylim()[0])[0], _area(axes)
    return Box(at - 2, area.bottom, at + 2, area.top)


def name(
    axes: Axes, text: str, at: tuple[float, float], taken: Sequence[Box], colour: str, size: float
) -> tuple[Box, ...]:
    """Write a mark's name where it covers nothing that is taken, as near as that can be; return what it takes.

    Where all is taken it stands beside the mark, whatever it covers. Scales and limits of the axes have to be final.
    """
    middle = _pixels(axes, *at)
    tried = list(_tried(middle, WIDE * size * len(text), HIGH * size))
    lines = [one for one in taken if one.top - one.bottom > 4 * MARK]  # which a name's own line does not cross
    box, distance = next(
        (
            (box, away)
            for box, away in tried
            if box.within(_area(axes))
            and not any(box.meets(other) for other in taken)
            and not any(step.meets(line) for step in _along(middle, box) for line in lines)
        ),
        tried[0],
    )
    leader: dict[str, Any] | None = None
    if distance > NEAR:
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}
    centre = ((box.left + box.right) / 2 - middle[0], (box.bottom + box.top) / 2 - middle[1])
    axes.annotate(text, at, xytext=centre, textcoords="offset points", ha="center", va="center", color=colour,
                  fontsize=size, arrowprops=leader)  # fmt: skip
    return (box, *_along(middle, box)) if leader else (box,)


def _along(start: tuple[float, float], box: Box) -> Iterator[Box]:
    """What a line from a mark to its name takes."""
    end = (box.left + box.right) / 2, (box.bottom + box.top) / 2
    for n in range(1, STEPS):
        x, y = (a + (b - a) * n / STEPS for a, b in zip(start, end, strict=True))
        yield Box(x - LEAST, y - LEAST, x + LEAST, y + LEAST)


def _tried(middle: tuple[float, float], width: float, height: float) -> Iterator[tuple[Box, float]]:
    for distance in DISTANCES:
        for across, up in SIDES:
            x = middle[0] + across * (distance + width / 2)
            y = middle[1] + up * (distance + height / 2)
            yield Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2), distance


def _pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Data coordinates in points of 1/72 inch, which are the px of a page."""
    found = axes.transData.transform((x, y)) * 72 / axes.figure.dpi
    return float(found[0]), float(found[1])


def _area(axes: Axes) -> Box:
    """What the axes enclose, and a little above, where nothing else stands."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    (a, b), (c, d) = _pixels(axes, left, low), _pixels(axes, right, high)
    return Box(a + LEAST, b + LEAST, c, d + LEAST)
