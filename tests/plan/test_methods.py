"""The way of distilling that goes with each kind of access, and the checks on a profile's losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan import make_plan
from edgedistill.plan.methods import recommend
from edgedistill.specs import Profile

Make = Callable[..., Profile]
PHONE = catalog.load_target("pixel8")

TABLE = [
    # what the teacher gives, writes text, same tokenizer -> name, losses
    (("logits", "pooled"), False, True, "white-box", ("soft_kl", "cross_entropy", "pooled_cosine")),
    (("logits",), False, True, "white-box", ("soft_kl", "cross_entropy")),
    (("text",), False, True, "black-box", ("hard_pseudo_label",)),
    (("logits", "text"), True, True, "white-box, on the student's own text", ("reverse_kl",)),
    (("logits", "text"), True, False, "black-box", ("cross_entropy",)),
    (("text",), True, True, "black-box", ("cross_entropy",)),
]


@pytest.mark.parametrize(("gives", "generates", "same", "name", "losses"), TABLE)
def test_each_access_has_its_method(
    gives: tuple[str, ...], generates: bool, same: bool, name: str, losses: tuple[str, ...]
) -> None:
    found = recommend(gives, generates=generates, same_tokenizer=same)
    assert (found.name, found.losses) == (name, losses)
    assert found.why


def test_few_rows_ask_for_a_transfer_set() -> None:
    assert "transfer_factor" in recommend(("logits",), rows=100).why
    assert "transfer_factor" not in recommend(("logits",), rows=100_000).why
    assert "transfer_factor" not in recommend(("logits",)).why


def test_a_teacher_that_gives_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="neither logits nor text"):
        recommend(())


def test_the_plan_says_which_method_it_is_and_what_the_profile_leaves_out(profile: Make) -> None:
    notes = make_plan(PHONE, profile()).notes
    assert any(note.startswith("white-box distillation") and "leaves out pooled_cosine" in note for note in notes)
    whole = make_plan(PHONE, catalog.load_profile("default")).notes
    assert not any("leaves out" in note for note in whole)
