"""Names of marks in a plot: readable wherever the marks are."""

from __future__ import annotations

from itertools import combinations

import pytest
from matplotlib.figure import Figure

from edgedistill.report import labels

FRONT = [(0.05 * 1.1**n, 10 * 0.88**n) for n in range(30)]  # size in MB, loss in percent
LIMIT = 1.0
PLACES = {
    "on the chosen one": ((0.82, 0.25), (0.82, 0.26)),
    "a little worse": ((0.82, 0.25), (0.83, 1.5)),
    "just at the limit": ((0.99, 0.25), (0.995, 0.3)),
    "in the corner": ((0.06, 9.0), (0.055, 0.2)),
    "beyond the limit": ((0.82, 0.25), (1.9, 1.5)),
}


@pytest.mark.parametrize("case", PLACES)
def test_no_name_covers_a_mark_a_line_or_a_name(case: str) -> None:
    axes = Figure(figsize=(5, 2.5)).add_axes((0.125, 0.25, 0.85, 0.7))
    places = [*FRONT, *PLACES[case]]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.03, 3)
    axes.set_ylim(20, 0.1)
    taken = [*(labels.mark(axes, *one) for one in places), labels.upright(axes, LIMIT)]
    found: list[labels.Box] = []
    for words, place in zip(("chosen", "measured"), PLACES[case], strict=True):
        drawn = labels.name(axes, words, place, [*taken, *found], "#000000", 10.5)
        assert not any(drawn[0].meets(other) for other in taken)
        assert not any(part.meets(labels.upright(axes, LIMIT)) for part in drawn)
        found += drawn
    names = [one for one in found if one.right - one.left > 20]
    assert len(names) == 2
    assert not any(one.meets(other) for one, other in combinations(names, 2))


def test_where_all_is_taken_the_name_is_still_drawn() -> None:
    axes = Figure(figsize=(5, 2.5)).add_axes((0.1, 0.1, 0.8, 0.8))
    everywhere = labels.Box(0, 0, 1000, 1000)
    assert len(labels.name(axes, "chosen", (0.5, 0.5), [everywhere], "#000000", 10.5)) == 1
    assert [text.get_text() for text in axes.texts] == ["chosen"]
