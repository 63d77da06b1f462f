"""A space of students: every combination accounted for, and parts that add up to the full cost."""

from __future__ import annotations

import cProfile
import random
from collections.abc import Callable
from inspect import getsourcefile
from itertools import product
from pstats import Stats
from typing import Any

import pytest

from edgedistill import catalog
from edgedistill.cli.select import select
from edgedistill.errors import InfeasibleError, SpecError
from edgedistill.plan import make_plan
from edgedistill.plan.choose import choose, ties
from edgedistill.plan.costing import cost, fill, predicted
from edgedistill.plan.make import _problem
from edgedistill.plan.pareto import NEAR, front
from edgedistill.plan.problem import Problem
from edgedistill.plan.search import _in_full
from edgedistill.plan.size.activations import counted_bytes, counted_items
from edgedistill.plan.space import space_of
from edgedistill.plan.sweep import NEAR_BYTES, NO, SURE, Entry, sweep
from edgedistill.specs import Budget, Candidate, Profile, StudentSpace, Target

Make = Callable[..., Profile]
PHONE = catalog.load_target("pixel8")
HOST = catalog.load_target("host")
SMALL_SPACE = {"layers": [1, 2, 3], "width": [32, 64, 96], "head_width": [16, 32], "ffn_ratio": [1, 2],
               "vocabulary": [500, 1000, 3000]}  # fmt: skip
FREE = Budget()


def spaced(profile: Make, axes: dict[str, Any], *, mixed: bool = False, **changes: Any) -> Profile:
    student = {"candidates": [], "space": {"axes": axes, "mixed_precision": mixed}, **changes.pop("student", {})}
    return profile(student=student, **changes)


def problem_of(profile: Profile, *targets: Target) -> Problem:
    family = catalog.load_plugin("students", profile.student.family)
    budgets = [one.budget.tightened(profile.budget) for one in targets]
    return _problem(targets, budgets, profile, family, 5, 22_700_000, {}, ())


FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "bert": (SMALL_SPACE, {}, "tflite"),
    "bert static": (SMALL_SPACE, {"activations": "static_int8"}, "tflite"),
    "bert one table": ({**SMALL_SPACE, "vocabulary": [5000]}, {}, "tflite"),  # larger than the profile's own
    "bert coreml": ({**SMALL_SPACE, "vocabulary": [500, 16000]}, {}, "coreml"),  # zero points, unless anything is int4
    "bert gguf": ({**SMALL_SPACE, "width": [32, 64]}, {}, "gguf"),
    "vit": (
        {"image_size": [32, 48], "patch": [8], "layers": [1, 3, 4], "width": [32, 64], "heads": [2, 4],
         "ffn_ratio": [2, 3]}, {}, "onnx",
    ),
    "llama": (
        {"layers": [1, 2, 4], "width": [64, 96], "heads": [4, 3], "kv_heads": [1, 2], "head_width": [32],
         "ffn_ratio": [2], "vocabulary": [400, 900, 3000]}, {}, "gguf",
    ),
    "cnn": (
        {"image_size": [32, 48], "stem_width": [16], "head_width": [64, 32], "width_multiple": [0.5, 1, 1.5],
         "depth_multiple": [0.5, 1, 2],
         "stages": [[{"expansion": 2, "kernel": 3, "stride": 2, "width": 16, "repeats": 2}]]},
        {"activations": "static_int8"}, "tflite",
    ),
}  # fmt: skip


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


LIMITS: list[dict[str, float]] = [
    {},
    {"size_mb": 0.1},
    {"latency_p95_ms": 0.3, "size_mb": 0.3},
    {"peak_memory_mb": 4.0},
]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("aim", ["quality", "size", "latency", "battery"])
def test_the_choice_is_that_of_trying_every_student(profile: Make, aim: str, limits: dict[str, float]) -> None:
    asked = spaced(profile, SMALL_SPACE, optimize_for=aim, budget=limits)
    target = PHONE.model_copy(update={"budget": FREE})
    plan = make_plan(target, asked, classes=5, teacher_parameters=22_700_000)
    problem, everything = problem_of(asked, target), []
    for layers, width, head, ratio, vocabulary in product(*SMALL_SPACE.values()):
        if width % head == 0:
            given = {"layers": layers, "width": width, "heads": width // head, "ffn": width * ratio,
                     "vocabulary": vocabulary}  # fmt: skip
            everything.append(cost(problem, fill(problem, given, "here"), asked.export.scheme))
    sure = [one for one in everything if one.sure]
    assert plan.search is not None
    assert plan.search.sure == len(sure) > 0
    assert plan.chosen.sure
    best = {
        "quality": lambda one: -one.quality.median,
        "size": lambda one: one.size.total_mb,
        "latency": lambda one: predicted(one, "latency_p95_ms"),
        "battery": lambda one: predicted(one, "energy_mj"),
    }[aim]
    wanted = min(map(best, sure))
    assert best(plan.chosen) == pytest.approx(wanted, abs=1.1e-3 if aim == "quality" else 1e-9)


def test_every_combination_is_accounted_for_and_a_tight_budget_excludes_most_by_bounds(profile: Make) -> None:
    for limits in ({}, {"size_mb": 0.15}):
        plan = make_plan(PHONE, spaced(profile, SMALL_SPACE, mixed=True, budget=limits), classes=5)
        counts = plan.search
        assert counts is not None
        assert counts.combinations == 3 * 2 * 2 * 3 * 2 * (2 + 3 + 4)  # width, head, ffn, vocabulary, bits by depth
        assert counts.invalid + counts.evaluated + counts.excluded == counts.combinations
        assert (counts.excluded > 0) == bool(limits)


def test_a_front_is_beaten_by_none_and_covers_all(profile: Make) -> None:
    asked = spaced(profile, SMALL_SPACE, mixed=True)
    problem = problem_of(asked, PHONE)
    assert asked.student.space is not None
    entries = sweep(problem, space_of(problem, asked.student.space, "here")).entries
    best = front(entries)

    def costs(one: Any) -> tuple[float, ...]:
        return one.size_mb, one.latency_ms, one.memory_mb, one.energy_mj

    assert 3 < len(best) < len(entries)

    def within(a: Any, b: Any, factor: float) -> bool:
        return a.quality >= b.quality and all(x <= factor * y for x, y in zip(costs(a), costs(b), strict=True))

    for one in best:
        assert not [o for o in entries if within(o, one, 1) and (o.quality, *costs(o)) != (one.quality, *costs(one))]
    for one in entries:
        assert any(within(kept, one, 1 + NEAR) for kept in best)


def test_one_cost_that_is_lower_is_enough_to_be_on_the_front() -> None:
    best = Entry(quality=0.99, size_mb=1, latency_ms=1, memory_mb=1, energy_mj=1, meets=2, stretch=0.5, core=0)
    cheaper = [
        best._replace(quality=0.98, **{name: 0.5}) for name in ("size_mb", "latency_ms", "memory_mb", "energy_mj")
    ]
    near = best._replace(quality=0.98, size_mb=0.99)
    worse = best._replace(quality=0.97)
    found = front([worse, near, *cheaper, best])
    assert found[0] == best
    assert set(found) == {best, *cheaper}


# Calls of functions for each student of a family's own space, a third more than there are. That 10^5 students take less
# than a second, which `bench/search.py` times, comes from that: one costed in full takes thousands.
CALLS = {"bert": 9, "cnn": 34, "llama": 6.2, "vit": 36}


@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in CALLS if name != "bert")]
)
def test_a_hundred_thousand_students_of_any_family_are_ranked_by_few_calls(family: str) -> None:
    chosen, plugin = select("pixel8", "default", search=True).profile, catalog.load_plugin("students", family)
    assert chosen.student.space is not None
    space = chosen.student.space.model_copy(update={"axes": plugin.SPACE})
    student = chosen.student.model_copy(update={"family": family, "space": space})
    dynamic = "dynamic_int8" in getattr(plugin, "ACTIVATIONS", ("dynamic_int8",))
    scheme = chosen.export.scheme.model_copy(update={"activations": "dynamic_int8" if dynamic else "static_int8"})
    export = chosen.export.model_copy(update={"scheme": scheme})
    asked = chosen.model_copy(update={"student": student, "export": export, "budget": FREE, "assistants": 0})
    form = "gguf" if family == "llama" else "tflite"
    target, seen = PHONE.model_copy(update={"formats": (form,)}), cProfile.Profile()
    plan = seen.runcall(make_plan, target, asked, rows=10_000, classes=77, teacher_parameters=22_700_000)
    assert plan.search is not None
    assert plan.search.combinations >= 100_000
    calls: dict[tuple[str, int, str], tuple[int, ...]] = Stats(seen).stats  # type: ignore[attr-defined]
    assert 0 < sum(times[1] for at, times in calls.items() if at[::2] == (getsourcefile(cost), "cost")) <= 100
    assert sum(times[1] for times in calls.values()) <= CALLS[family] * plan.search.combinations


def test_mixed_precision_is_used_where_size_binds_and_every_format_can_store_it(profile: Make) -> None:
    axes = {"layers": [4], "width": [64], "head_width": [32], "ffn_ratio": [2], "vocabulary": [2000]}
    whole = make_plan(PHONE, spaced(profile, axes), classes=5).chosen
    assert whole.scheme is None
    tight = {"size_mb": 0.9 * whole.size.total_mb}
    plan = make_plan(PHONE, spaced(profile, axes, mixed=True, budget=tight), classes=5)
    scheme = plan.profile.export.scheme
    assert plan.chosen.scheme == scheme
    assert 4 in {grid.bits for grid in scheme.grids()}
    assert scheme.misfit(*(catalog.constants("exporters", "tflite")[name] for name in ("HOLDS", "EXCLUDES"))) is None
    assert plan.chosen.size.total_mb <= tight["size_mb"]
    assert plan.chosen.quality is not None
    assert whole.quality is not None
    assert plan.chosen.quality.median < whole.quality.median


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


@pytest.mark.parametrize("aim", ["latency", "battery"])
def test_who_is_tied_with_the_choice_could_be_chosen_and_the_smallest_of_equals_is(profile: Make, aim: str) -> None:
    asked = spaced(
        profile, SMALL_SPACE, mixed=True, optimize_for=aim, quality={"retained_min": 0.95},
        budget={"peak_memory_mb": 5.4, "latency_p95_ms": 0.6},
    )  # fmt: skip
    problem = problem_of(asked, PHONE.model_copy(update={"budget": FREE}))
    assert asked.student.space is not None
    entries = sweep(problem, space_of(problem, asked.student.space, "here")).entries
    choice = choose(asked, entries)
    assert choice is not None
    chosen = choice.entry
    near = [one for one in entries if chosen.latency_ms / 1.5 < one.latency_ms < chosen.latency_ms * 1.5]
    tied = ties(asked, chosen, entries)
    assert tied
    assert {(one.meets, one.quality >= 0.95) for one in tied} == {(SURE, True)}
    assert any(one.quality < 0.95 for one in near)
    larger = chosen._replace(size_mb=chosen.size_mb + 0.1)
    assert choose(asked, [larger, *entries]) == choice._replace(pool=choice.pool + 1)


@pytest.mark.parametrize("deep", [0.5, 1, 2])
@pytest.mark.parametrize("wide", [0.5, 1, 1.5])
def test_a_budget_that_one_student_needs_to_the_last_digit_is_met(profile: Make, wide: float, deep: float) -> None:
    axes = {**FAMILIES["cnn"][0], "width_multiple": [wide], "depth_multiple": [deep], "head_width": [32]}
    target = PHONE.model_copy(update={"budget": FREE})

    def chosen(**budget: float) -> Candidate:
        static, family = {"activations": "static_int8"}, {"family": "cnn"}
        asked = spaced(
            profile, axes, mixed=True, student=family, export={"scheme": static}, budget=budget, optimize_for="size"
        )
        return make_plan(target, asked, classes=5).chosen

    least = chosen()
    needs = {line.quantity: line.low for line in least.predictions} | {"size_mb": least.size.total_mb}
    for line, need in needs.items():
        if line not in Budget.model_fields:
            continue  # as the first load: told, and no line of a budget
        assert chosen(**{line: need}).violations == ()
    with pytest.raises(InfeasibleError):
        chosen(size_mb=least.size.total_mb - 1e-7)


def test_the_chosen_vocabulary_is_the_profiles_from_then_on(profile: Make) -> None:
    plan = make_plan(PHONE, spaced(profile, SMALL_SPACE, optimize_for="size"), classes=5)
    assert plan.profile.student.vocabulary == plan.chosen.config["vocabulary"] == 500


def test_a_space_that_cannot_meet_its_budget_says_what_would(profile: Make) -> None:
    limits = {"size_mb": 0.01, "latency_p95_ms": 1e-4}
    with pytest.raises(InfeasibleError, match=r"size_mb: limit 0\.01 MB") as caught:
        make_plan(PHONE, spaced(profile, SMALL_SPACE, budget=limits), classes=5)
    told = str(caught.value).split("smallest relaxation: ")[1].split(", which")[0]
    relaxed = {name: float(value) for name, value in (item.split(" = ") for item in told.split(", "))}
    assert set(relaxed) == set(limits)
    assert make_plan(PHONE, spaced(profile, SMALL_SPACE, budget=relaxed), classes=5).chosen.feasible
    for name in relaxed:  # each is as small as it can be
        with pytest.raises(InfeasibleError):
            make_plan(PHONE, spaced(profile, SMALL_SPACE, budget={**relaxed, name: 0.97 * relaxed[name]}), classes=5)


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


@pytest.mark.parametrize("family", ["bert", "cnn", "llama", "vit"])
def test_every_familys_own_space_can_be_searched(profile: Make, family: str) -> None:
    plugin = catalog.load_plugin("students", family)
    scheme = {"activations": "static_int8" if family == "cnn" else "dynamic_int8"}
    target = PHONE.model_copy(update={"formats": ("gguf",) if family == "llama" else ("tflite",), "budget": FREE})
    asked = profile(
        student={"family": family, "candidates": [], "space": {"axes": plugin.SPACE}, "buckets": [32]},
        export={"scheme": scheme}, budget={"size_mb": 3.0},
    )  # fmt: skip
    plan = make_plan(target, asked, classes=5)
    assert plan.chosen.sure
    assert plan.search is not None
    assert plan.search.combinations > 1000
    assert StudentSpace(axes=plugin.SPACE)
