"""The transfer set: new unlabelled texts made from training rows by rule, for the teacher to label.

The texts are not meant to be good sentences, only to lie near real ones: a teacher's answer on them says where its
boundaries are. A word is what stands between spaces. Every rule is a function of words and a random generator.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgedistill.data.rows import Row, normalise, row_id, text_key
from edgedistill.errors import SpecError

Words = list[str]


@dataclass(frozen=True)
class Recipe:
    """How often each rule is used (relative weights) and its parameters.

    Joining two texts at a shared word is the default: on BANKING77 it was worth 0.8 points to the student, where
    replacing words by their neighbours was worth 0.1 (validation rows, one seed each).

    Raises:
        SpecError: if a weight is negative or all are zero.
    """

    drop_words: float = 0.0
    swap_words: float = 0.0
    splice: float = 0.0
    join: float = 1.0
    drop_rate: float = 0.15
    min_words: int = 2
    tries: int = 8

    def __post_init__(self) -> None:
        weights = (self.drop_words, self.swap_words, self.splice, self.join)
        if min(weights) < 0 or sum(weights) <= 0:
            raise SpecError(f"the weights of the rules are {weights}. Allowed: 0 or more each, and not all 0.")


def transfer_texts(
    rows: Sequence[Row], factor: int, seed: int, *, exclude: Iterable[str] = (), recipe: Recipe | None = None
) -> list[Row]:
    """At most `factor` new texts for each row, without labels; `parent_id` is the row that a text begins with.

    No text equals (see `text_key`) one in `rows` or `exclude`, or another new one. Fewer than `factor` come from a row
    for which the rules find nothing new in `recipe.tries` attempts. The same arguments give the same texts.
    """
    if not rows or factor <= 0:
        return []
    recipe = recipe or Recipe()
    maker = _Maker(rows, recipe, random.Random(f"edgedistill transfer {seed}"))
    seen = {text_key(text) for text in exclude}
    seen.update(text_key(row.text) for row in rows)
    made: list[Row] = []
    for _ in range(factor):
        for at, parent in enumerate(rows):
            for _ in range(recipe.tries):
                text = normalise(" ".join(maker.make(at)))
                key = text_key(text)
                if text and key not in seen:
                    seen.add(key)
                    made.append(Row(row_id(text, None), text, None, parent.id))
                    break
    return made


def drop_words(words: Words, rate: float, rng: random.Random) -> Words:
    """Each word is left out with probability `rate`, and at least one is."""
    kept = [word for word in words if rng.random() >= rate]
    if len(kept) == len(words):
        del kept[_below(rng, len(kept))]
    return kept


def swap_words(words: Words, rng: random.Random) -> Words:
    """Two neighbouring words change places."""
    if len(words) < 2:
        return words
    at = _below(rng, len(words) - 1)
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


def splice(words: Words, other: Words, rng: random.Random) -> Words:
    """The beginning of one text and the end of another, each cut at a random place."""
    return words[: 1 + _below(rng, len(words))] + other[_below(rng, len(other)) :]


def join_at(words: Words, at: int, other: Words, other_at: int) -> Words:
    """The first text up to a word that both have, then the second from that word on."""
    return words[:at] + other[other_at:]


class _Maker:
    """The words of all rows, where each word occurs, and the generator that draws from them."""

    def __init__(self, rows: Sequence[Row], recipe: Recipe, rng: random.Random) -> None:
        self._words = [row.text.split() for row in rows]
        self._longest = max(map(len, self._words))
        self._recipe, self._rng = recipe, rng
        self._where: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for at, words in enumerate(self._words):
            for place, word in enumerate(words[1:], 1):
                self._where[word.casefold()].append((at, place))
        rules = (recipe.drop_words, recipe.swap_words, recipe.splice, recipe.join)
        self._bounds = [sum(rules[: n + 1]) for n in range(len(rules))]

    def make(self, at: int) -> Words:
        """One new text from row `at`, or no words if the rule drawn does not apply to it."""
        words = self._words[at]
        drawn = self._rng.random() * self._bounds[-1]
        rule = next(n for n, bound in enumerate(self._bounds) if drawn < bound)
        if rule == 0:
            made = drop_words(words, self._recipe.drop_rate, self._rng)
        elif rule == 1:
            made = swap_words(words, self._rng)
        elif rule == 2:
            made = splice(words, self._words[_below(self._rng, len(self._words))], self._rng)
        else:
            made = self._join(words)
        # never longer than a real text: the student's longest bucket is chosen from those
        return made if self._recipe.min_words <= len(made) <= self._longest else []

    def _join(self, words: Words) -> Words:
        if len(words) < 2:
            return []
        at = 1 + _below(self._rng, len(words) - 1)
        places = self._where[words[at].casefold()]
        other, other_at = places[_below(self._rng, len(places))]
        return join_at(words, at, self._words[other], other_at)


def _below(rng: random.Random, count: int) -> int:
    """An index below `count`; only `random()` is promised to stay the same between Python versions."""
    return int(rng.random() * count)
