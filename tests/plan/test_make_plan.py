"""The choice of a student, the stages, and what the plan admits not to know."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan import make_plan
from edgedistill.specs import Plan, Profile, Target

Make = Callable[..., Profile]
PHONE = catalog.load_target("pixel8")
HOST = catalog.load_target("host")


def with_budget(target: Target, **limits: float | None) -> Target:
    """The target with some limits changed; None lifts one."""
    return target.model_copy(update={"budget": target.budget.model_copy(update=limits)})


def widths(plan: Plan) -> list[float]:
    return [one.config["width"] for one in plan.candidates]


def test_the_same_input_gives_the_same_plan(profile: Make) -> None:
    assert make_plan(PHONE, profile(), classes=5) == make_plan(PHONE, profile(), classes=5)


def test_a_plan_survives_json(profile: Make) -> None:
    plan = make_plan(PHONE, profile(), rows=1000, classes=5, teacher_parameters=22_700_000)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_candidates_are_filled_in_and_keep_their_order(profile: Make) -> None:
    plan = make_plan(PHONE, profile(), classes=77)
    assert widths(plan) == [64, 128, 256]
    for one in plan.candidates:
        assert (one.config["vocabulary"], one.config["max_length"], one.config["classes"]) == (2000, 32, 77)


def test_the_tighter_limit_of_target_and_profile_counts(profile: Make) -> None:
    plan = make_plan(PHONE, profile(budget={"size_mb": 1.5, "latency_p95_ms": 999}))
    assert plan.budget.size_mb == 1.5
    assert plan.budget.latency_p95_ms == PHONE.budget.latency_p95_ms


def test_quality_takes_the_most_parameters_that_fit(profile: Make) -> None:
    free = with_budget(PHONE, latency_p95_ms=None, energy_mj=None)
    assert make_plan(free, profile()).chosen.config["width"] == 256
    assert make_plan(free, profile(budget={"size_mb": 1.5})).chosen.config["width"] == 128


@pytest.mark.parametrize("aim", ["size", "latency"])
def test_size_and_latency_take_the_smallest_student(profile: Make, aim: str) -> None:
    assert make_plan(PHONE, profile(optimize_for=aim)).chosen.config["width"] == 64


def test_battery_and_latency_choose_alike_and_the_plan_says_why(profile: Make) -> None:
    saving, fast = (make_plan(PHONE, profile(optimize_for=aim)) for aim in ("battery", "latency"))
    assert saving.chosen == fast.chosen
    word = "battery chooses as latency does: energy is the power of the whole phone times time"
    assert [word in " ".join(plan.notes) for plan in (saving, fast)] == [True, False]
    board = make_plan(catalog.load_target("rpi5"), profile(optimize_for="battery"))
    assert "the lowest latency stands in for it" in " ".join(board.notes)


def test_the_aim_that_is_told_is_the_one_that_decided(profile: Make) -> None:
    """Of a board no energy is predicted; in a fleet that of the phone decides, whichever is named first."""
    board = catalog.load_target("rpi5")
    wanted = profile(optimize_for="battery")
    alone = " ".join(make_plan(board, wanted).notes)
    assert "lowest predicted latency" in alone
    assert "lowest predicted energy" not in alone
    together = " ".join(make_plan(board, wanted, fleet=(PHONE,)).notes)
    assert "lowest predicted energy" in together
    assert "stands in for it" not in together
    unit = board.cpu.model_copy(update={"one_core_fp32_gflops": None})
    untimed = " ".join(make_plan(board.model_copy(update={"compute_units": (unit,)}), wanted).notes)
    assert "as no time is predicted" in untimed
    assert "stands in for it" not in untimed


def test_a_candidate_that_surely_fits_is_preferred_to_one_that_may(profile: Make) -> None:
    free = with_budget(PHONE, energy_mj=None)
    large = make_plan(free, profile()).candidates[2].predictions[0]
    between = (large.median + large.high) / 2
    plan = make_plan(with_budget(free, latency_p95_ms=between), profile())
    assert plan.candidates[2].feasible
    assert plan.chosen.config["width"] == 128


def test_when_none_is_sure_the_plan_goes_on_and_says_so(profile: Make) -> None:
    free = with_budget(PHONE, energy_mj=None)
    small = make_plan(free, profile()).candidates[0].predictions[0]
    plan = make_plan(with_budget(free, latency_p95_ms=small.median), profile())
    assert plan.chosen.feasible
    assert any("not certain before it is measured: latency_p95_ms" in note for note in plan.notes)


def test_more_of_everything_costs_more(profile: Make) -> None:
    found = make_plan(PHONE, profile()).candidates
    for less, more in pairwise(found):
        assert less.parameters < more.parameters
        assert less.size.total_mb < more.size.total_mb
        for a, b in zip(less.predictions, more.predictions, strict=True):
            assert (a.quantity, a.median < b.median) == (b.quantity, True)


def test_a_larger_vocabulary_costs_bytes_but_no_time(profile: Make) -> None:
    small = make_plan(PHONE, profile()).candidates[0]
    wide = make_plan(PHONE, profile(student={"vocabulary": 4000})).candidates[0]
    assert wide.size.total_mb > small.size.total_mb
    assert wide.predictions[0] == small.predictions[0]


def test_the_stages_come_in_the_order_of_the_build(profile: Make) -> None:
    plan = make_plan(PHONE, profile(), rows=6400, classes=5)
    assert [stage.name for stage in plan.stages] == [
        *("data", "teacher", "record", "init", "warm_up", "quantized", "freeze"),
        *("export:tflite", "verify:tflite", "measure", "gate"),
    ]
    assert all(stage.why for stage in plan.stages)
    assert "400 steps" in plan.stages[4].why
    assert plan.stages[3].spec["config"] == plan.chosen.config
    assert plan.stages[2].spec["outputs"] == ["logits"]


@pytest.mark.parametrize("rows", [1, 63, 64, 1000])
def test_the_steps_announced_are_those_that_training_takes(profile: Make, rows: int) -> None:
    from edgedistill.distil import steps_of

    asked = profile(data={"transfer_factor": 1})
    plan = make_plan(PHONE, asked, rows=rows)
    for spec, stage in zip(asked.stages, plan.stages[4:6], strict=True):
        assert f" {steps_of(spec, 2 * rows)} steps" in stage.why


@pytest.mark.parametrize("target", catalog.target_names())
@pytest.mark.parametrize("name", catalog.profile_names())
def test_every_shipped_profile_can_be_planned_for_every_shipped_target(name: str, target: str) -> None:
    plan = make_plan(catalog.load_target(target), catalog.load_profile(name))
    assert plan.chosen.feasible


def test_the_defaults_of_a_loss_are_written_out(profile: Make) -> None:
    plan = make_plan(PHONE, profile())
    assert plan.stages[4].spec["losses"][0]["params"] == {"temperature": 2.0}
    assert plan.stages[5].spec["losses"][0]["params"] == {"temperature": 4.0}
    assert plan.stages[5].spec["losses"][1]["params"] == {"smoothing": 0.0}


def test_what_needs_the_device_is_listed_as_unmeasured(profile: Make) -> None:
    assert make_plan(PHONE, profile()).unmeasured == ("latency_p95_ms", "peak_memory_mb", "energy_mj")
    assert make_plan(HOST, profile()).unmeasured == ()
    assert make_plan(HOST, profile(budget={"energy_mj": 100})).unmeasured == ("energy_mj",)


def test_a_limit_without_facts_to_predict_it_is_noted(profile: Make) -> None:
    plan = make_plan(HOST, profile(budget={"energy_mj": 1e-6}))
    assert any(note.startswith("energy_mj: not predicted") and "battery_wh" in note for note in plan.notes)


def test_energy_without_a_latency_lacks_what_latency_lacks(profile: Make) -> None:
    """The target states its battery: the note names the core's rate, for both lines."""
    blind = PHONE.cpu.model_copy(update={"one_core_fp32_gflops": None})
    units = tuple(blind if unit.kind == "cpu" else unit for unit in PHONE.compute_units)
    plan = make_plan(PHONE.model_copy(update={"compute_units": units}), profile(budget={"energy_mj": 5}))
    gaps = [note for note in plan.notes if ": not predicted" in note]
    assert [note.split(":")[0] for note in gaps] == ["latency_p95_ms", "energy_mj"]
    assert all("one_core_fp32_gflops" in note and "battery_wh" not in note for note in gaps)


@pytest.mark.parametrize(("teacher", "word"), [(22_700_000, "assistant"), (150_000, "little to compress")])
def test_a_teacher_far_from_the_student_in_size_is_noted(profile: Make, teacher: int, word: str) -> None:
    plan = make_plan(PHONE, profile(optimize_for="size"), teacher_parameters=teacher)
    assert plan.chosen.teacher_ratio == teacher / plan.chosen.parameters
    assert any(word in note for note in plan.notes)


def test_a_teacher_of_fitting_size_or_unknown_size_is_not(profile: Make) -> None:
    for teacher in (5 * make_plan(PHONE, profile()).chosen.parameters, None):
        plan = make_plan(PHONE, profile(), teacher_parameters=teacher)
        assert not any("the teacher is" in note for note in plan.notes)


def test_an_unknown_number_of_classes_is_noted(profile: Make) -> None:
    assert any("classes is not known" in note for note in make_plan(PHONE, profile()).notes)
    assert not any("classes" in note.split(":")[0] for note in make_plan(PHONE, profile(), classes=3).notes)


WRONG = {
    "task": ({"task": "text_clasification"}, r"task: unknown name.*did you mean 'text_classification'"),
    "family": ({"student": {"family": "brt"}}, r"student\.family: unknown name 'brt'; did you mean 'bert'"),
    "key": ({"student": {"candidates": [{"layer": 1}]}}, r"candidates\[0\].*'layer'; did you mean 'layers'"),
    "value": (
        {"student": {"candidates": [{"layers": 1, "width": 63, "heads": 2, "ffn": 9}]}},
        r"candidates\[0\].*width = 63 is not a multiple of heads = 2",
    ),
    "length": (
        {"student": {"candidates": [{"layers": 1, "width": 64, "heads": 2, "ffn": 9, "max_length": 16}]}},
        r"candidates\[0\]: max_length = 16 is below the longest bucket, 32",
    ),
    "classes": (
        {"student": {"candidates": [{"layers": 1, "width": 64, "heads": 2, "ffn": 9, "classes": 7}]}},
        r"candidates\[0\]: classes = 7, but the data has 5",
    ),
    "loss": (
        {
            "stages": [
                {"name": "a", "epochs": 1, "learning_rate": 1, "fake_quant": True, "losses": [{"loss": "soft_lk"}]}
            ]
        },
        r"stage 'a', losses\[0\]: unknown name 'soft_lk'; did you mean 'soft_kl'",
    ),
    "loss parameter": (
        {
            "stages": [
                {
                    **{"name": "a", "epochs": 1, "learning_rate": 1, "fake_quant": True},
                    "losses": [{"loss": "soft_kl", "params": {"temprature": 1}}],
                }
            ]
        },
        r"loss 'soft_kl' has no parameter 'temprature'; did you mean 'temperature'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_with_its_place_and_the_nearest_name(profile: Make, case: str) -> None:
    changes, message = WRONG[case]
    with pytest.raises(SpecError, match=message):
        make_plan(PHONE, profile(**changes), classes=5)


def test_an_unknown_format_is_the_targets_mistake(profile: Make) -> None:
    with pytest.raises(SpecError, match=r"target 'pixel8': formats: unknown name 'tflit'; did you mean 'tflite'"):
        make_plan(PHONE.model_copy(update={"formats": ("tflit",)}), profile())


def test_planning_loads_neither_torch_nor_numpy(profile: Make, tmp_path: Path) -> None:
    values = tmp_path / "profile.json"
    values.write_text(profile().model_dump_json(), encoding="utf-8")
    code = (
        "import sys, pathlib\n"
        "from edgedistill import catalog; from edgedistill.plan import make_plan\n"
        "from edgedistill.specs import Profile\n"
        "profile = Profile.model_validate_json(pathlib.Path(sys.argv[1]).read_text())\n"
        "make_plan(catalog.load_target('pixel8'), profile)\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(values)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
