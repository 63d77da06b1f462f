"""A search: what a plan chooses is the best that its space holds, found by few calls, or it says what would do."""

from __future__ import annotations

import cProfile
from inspect import getsourcefile
from itertools import product
from pstats import Stats

import pytest
from spaces import FAMILIES, FREE, PHONE, SMALL_SPACE, Make, problem_of, spaced

from edgedistill import catalog
from edgedistill.cli.select import select
from edgedistill.errors import InfeasibleError
from edgedistill.plan import make_plan
from edgedistill.plan.costing import cost, fill, predicted
from edgedistill.specs import Budget, Candidate, StudentSpace

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
