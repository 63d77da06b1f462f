"""A space of students: every combination accounted for, and parts that add up to the full cost."""

from __future__ import annotations

import random

import pytest
from spaces import FAMILIES, FREE, PHONE, SMALL_SPACE, Make, problem_of, spaced

from edgedistill.errors import SpecError
from edgedistill.plan import make_plan
from edgedistill.plan.costing import predicted
from edgedistill.plan.search import _in_full
from edgedistill.plan.size.activations import counted_bytes, counted_items
from edgedistill.plan.space import space_of
from edgedistill.plan.sweep import NEAR_BYTES, NO, sweep
from edgedistill.specs import StudentSpace


@pytest.mark.parametrize("case", FAMILIES)
def test_parts_add_up_to_the_full_cost(profile: Make, case: str) -> None:
    axes, scheme, form = FAMILIES[case]
    asked = spaced(profile, axes, mixed=True, student={"family": case.split()[0]}, export={"scheme": scheme})
    problem = problem_of(asked, PHONE.model_copy(update={"formats": (form,)}))
    assert asked.student.space is not None
    space = space_of(problem, asked.student.space, "here")
    entries = sweep(problem, space, keep_all=True).entries
    assert len(entries) > 30
    for one in [*random.Random(0).sample(entries, 24), entries[0], entries[-1]]:
        full = _in_full(problem, space, one, "here")
        # a row of a vocabulary is a share of many, which are aligned together; all else adds up to the byte
        assert one.size_mb == pytest.approx(full.size.total_mb, abs=(NEAR_BYTES if "vocabulary" in axes else 2) / 1e6)
        assert one.latency_ms == pytest.approx(predicted(full, "latency_p95_ms"), rel=1e-3)
        assert one.memory_mb == pytest.approx(predicted(full, "peak_memory_mb"), rel=1e-3)
        assert one.energy_mj == pytest.approx(predicted(full, "energy_mj"), rel=1e-3)
        assert full.quality is not None
        assert one.quality == pytest.approx(full.quality.median, abs=1e-4)
        assert (one.meets != NO) == full.feasible


@pytest.mark.parametrize(("lengths", "sizes"), [((8, 16), (16, 8)), ((8,), (8, 8)), ((4, 12, 16), (32, 4))])
def test_tensors_of_a_graph_are_counted_once_whatever_sizes_are_equal(
    lengths: tuple[int, ...], sizes: tuple[int, int]
) -> None:
    width, heads = sizes
    lines = ("float length width", "float width length", "int32 2 = length width", "int32 length @", "float 1 width #",
             "shape length heads*width", "int32 2 = heads 4", "float width/2 length+width")  # fmt: skip
    entries = [{"length": length, "width": width, "heads": heads} for length in lengths]
    groups = [(lines, entries), (lines[2:5], entries[:1])]
    assert counted_bytes(groups) == sum(counted_items(groups).values())


@pytest.mark.parametrize("case", FAMILIES)
def test_what_a_bound_excludes_could_not_meet_the_budget(profile: Make, case: str) -> None:
    axes, scheme, form = FAMILIES[case]
    target = PHONE.model_copy(update={"formats": (form,), "budget": FREE})
    family = {"family": case.split()[0]}
    free = problem_of(spaced(profile, axes, mixed=True, student=family, export={"scheme": scheme}), target)
    space = space_of(free, StudentSpace(axes=axes, mixed_precision=True), "here")
    every = sweep(free, space, keep_all=True).entries
    for name, quantity in (("size_mb", "size_mb"), ("latency_ms", "latency_p95_ms"), ("energy_mj", "energy_mj")):
        limit = sorted(getattr(one, name) for one in every)[len(every) // 4]
        asked = spaced(
            profile, axes, mixed=True, student=family, export={"scheme": scheme}, budget={quantity: limit / 2}
        )
        assert asked.student.space is not None
        problem = problem_of(asked, target)
        space = space_of(problem, asked.student.space, "here")
        unpruned = [one for one in sweep(problem, space, keep_all=True).entries if one.meets != NO]
        pruned = sweep(problem, space)
        assert pruned.entries == unpruned
        assert 0 <= len(unpruned) < len(every)
        assert pruned.counts.feasible >= len(unpruned)


def test_every_combination_is_accounted_for_and_a_tight_budget_excludes_most_by_bounds(profile: Make) -> None:
    for limits in ({}, {"size_mb": 0.15}):
        plan = make_plan(PHONE, spaced(profile, SMALL_SPACE, mixed=True, budget=limits), classes=5)
        counts = plan.search
        assert counts is not None
        assert counts.combinations == 3 * 2 * 2 * 3 * 2 * (2 + 3 + 4)  # width, head, ffn, vocabulary, bits by depth
        assert counts.invalid + counts.evaluated + counts.excluded == counts.combinations
        assert (counts.excluded > 0) == bool(limits)


def test_a_mixed_student_just_below_the_limit_is_found(profile: Make) -> None:
    """What a file that mixes grids shares and aligns is counted: no way to store a student is missed by a percent."""
    axes = {"layers": [6], "width": [32], "head_width": [16], "ffn_ratio": [2], "vocabulary": [500]}
    asked = spaced(profile, axes, mixed=True)
    problem = problem_of(asked, PHONE.model_copy(update={"budget": FREE}))
    assert asked.student.space is not None
    space = space_of(problem, asked.student.space, "here")
    entries = sweep(problem, space, keep_all=True).entries
    assert len(entries) == 14
    for one in entries:
        exact = _in_full(problem, space, one, "here").size.total_mb
        limited = problem_of(
            spaced(profile, axes, mixed=True, budget={"size_mb": 1.0005 * exact}),
            PHONE.model_copy(update={"budget": FREE}),
        )
        kept = sweep(limited, space).entries
        assert one._replace(stretch=0, meets=0) in [other._replace(stretch=0, meets=0) for other in kept]


def test_a_student_whose_rows_have_no_groups_is_searched_as_given(profile: Make) -> None:
    axes = {"layers": [1, 2], "width": [48, 64], "head_width": [16], "ffn_ratio": [1], "vocabulary": [500, 1000]}
    plan = make_plan(PHONE, spaced(profile, axes, mixed=True), classes=5)
    assert plan.search is not None
    assert plan.search.invalid == 0
    assert plan.search.combinations == 2 * 2 + 2 * 2 * (2 + 3)  # of width 48 one way each; of width 64 all
    assert plan.search.feasible == plan.search.combinations
    alone = make_plan(PHONE, spaced(profile, {**axes, "width": [48]}, mixed=True), classes=5).chosen
    assert (alone.config["width"], alone.scheme) == (48, None)


WRONG = {
    "axis": ({"layer": [1]}, r"axis 'layer' is unknown; did you mean 'layers'"),
    "depth": ({**SMALL_SPACE, "layers": [0]}, r"layers holds 0; whole numbers from 1"),
    "ratio": ({**SMALL_SPACE, "ffn_ratio": ["2"]}, r"ffn_ratio holds '2'; numbers above 0"),
    "none": ({"layers": [1], "width": [33], "heads": [2], "ffn": [64]}, r"no combination .* is a student.*33"),
    "keys": ({"layers": [1]}, r"no combination .* is a student.*key 'width' is missing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_space_is_refused_with_its_place(profile: Make, case: str) -> None:
    axes, message = WRONG[case]
    with pytest.raises(SpecError, match=rf"(?s)student\.space.*{message}"):
        make_plan(PHONE, spaced(profile, axes), classes=5)


def test_candidates_or_a_space_but_one_of_both(profile: Make) -> None:
    with pytest.raises(SpecError, match="got both"):
        profile(student={"space": {"axes": SMALL_SPACE}})
    with pytest.raises(SpecError, match="got neither"):
        profile(student={"candidates": []})
