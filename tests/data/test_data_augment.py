"""The transfer set: unlabelled, new, bounded, and the same in every process."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from edgedistill.data import Recipe, Row, text_key, transfer_texts
from edgedistill.data.augment import drop_words, join_at, splice, swap_words
from edgedistill.errors import SpecError

TEXT = "where is my new card and why does the transfer of money take so long"
WORDS = TEXT.split()
ROWS = [Row(f"{n:016x}", " ".join(random.Random(n).sample(WORDS, 3 + n % 6)), f"l{n % 3}") for n in range(200)]
RULES = ("drop_words", "swap_words", "splice", "join")


def only(rule: str) -> Recipe:
    return Recipe(**{name: float(name == rule) for name in RULES})


@pytest.mark.parametrize("factor", [1, 3])
def test_new_unlabelled_texts_with_parents(factor: int) -> None:
    made = transfer_texts(ROWS, factor, 0)
    assert 0.9 * factor * len(ROWS) < len(made) <= factor * len(ROWS)
    assert {row.label for row in made} == {None}
    assert max(Counter(row.parent_id for row in made).values()) <= factor
    assert {row.parent_id for row in made} <= {row.id for row in ROWS}
    assert len({row.id for row in made}) == len(made)
    found = {text_key(row.text) for row in made}
    assert len(found) == len(made)
    assert not found & {text_key(row.text) for row in ROWS}
    assert max(len(row.text.split()) for row in made) <= max(len(row.text.split()) for row in ROWS)


def test_the_seed_decides() -> None:
    assert transfer_texts(ROWS, 2, 5) == transfer_texts(ROWS, 2, 5)
    assert transfer_texts(ROWS, 2, 5) != transfer_texts(ROWS, 2, 6)


def test_excluded_texts_do_not_come_back() -> None:
    free = transfer_texts(ROWS, 1, 0)
    forbidden = [f" {row.text.upper()} " for row in free[::2]]
    made = {text_key(row.text) for row in transfer_texts(ROWS, 1, 0, exclude=forbidden)}
    assert made
    assert not made & {text_key(text) for text in forbidden}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_alone_makes_texts(rule: str) -> None:
    made = transfer_texts(ROWS, 1, 0, recipe=only(rule))
    assert len(made) > 0.5 * len(ROWS)
    words = {row.id: row.text.split() for row in ROWS}
    for row in made:
        parent, child = words[row.parent_id or ""], row.text.split()
        if rule == "drop_words":
            assert len(child) < len(parent)
            assert not Counter(child) - Counter(parent)
        elif rule == "swap_words":
            assert sorted(child) == sorted(parent)
            assert sum(one != other for one, other in zip(child, parent, strict=True)) == 2
        else:
            assert child[0] == parent[0]


def test_nothing_to_make() -> None:
    assert transfer_texts(ROWS, 0, 0) == []
    assert transfer_texts([], 3, 0) == []
    assert transfer_texts([Row("0", "hello", "a")], 3, 0) == []  # one word: the rules find nothing new


def test_few_possibilities_end_without_a_loop() -> None:
    made = transfer_texts([Row("0", "two words", "a"), Row("1", "words two", "b")], 20, 0)
    assert len(made) < 10


@pytest.mark.parametrize("weights", [dict.fromkeys(RULES, 0.0), {"splice": -1.0}])
def test_weights_must_make_sense(weights: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="weights of the rules"):
        Recipe(**weights)


def test_the_rules_by_hand() -> None:
    rng = random.Random(0)
    one, two = ["a", "b", "c", "d"], ["p", "q", "r"]
    for _ in range(50):
        assert 0 <= len(drop_words(one, 0.0, rng)) == 3  # at least one goes
        assert drop_words(one, 1.0, rng) == []
        assert swap_words(one, rng) in (["b", "a", "c", "d"], ["a", "c", "b", "d"], ["a", "b", "d", "c"])
        made = splice(one, two, rng)
        assert made[0] == "a"
        assert made[-1] == "r"
    assert swap_words(["a"], rng) == ["a"]
    assert join_at(one, 2, two, 1) == ["a", "b", "q", "r"]
    assert (one, two) == (["a", "b", "c", "d"], ["p", "q", "r"])
