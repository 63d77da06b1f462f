"""A teacher assistant is really trained, teaches the student, and is continued like everything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgedistill import catalog, pipeline
from edgedistill.pipeline.trained import Trained
from edgedistill.specs import Plan, Profile, Silent
from edgedistill.store import Store

PHONE = catalog.load_target("pixel8")


class Stopping(Silent):
    """A person who presses Ctrl-C when a stage begins; and the names of the stages that began."""

    def __init__(self, stop: str = "") -> None:
        self.stop, self.begun = stop, list[str]()
        self.cached = 0

    def begin(self, stage: str, total: int = 0, unit: str = "") -> None:
        self.begun.append(stage)
        if self.stop and stage == self.stop:
            raise KeyboardInterrupt

    def end(self, note: str = "") -> None:
        self.cached += note == "already done"


def profile(count: int) -> Profile:
    return catalog.load_profile("tiny").model_copy(update={"assistants": count})


def train(store: Path, count: int, watch: Stopping) -> tuple[Plan, Trained]:
    return pipeline.train_student(PHONE, profile(count), store=Store(store), base=Path.cwd(), progress=watch)


def inputs(trained_key: Path) -> dict[str, str]:
    described = json.loads((trained_key / "key.json").read_text())
    return {item["stage"]: item["key"] for item in described["inputs"]}


@pytest.fixture(scope="module")
def taught(tiny_bundle: Path, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, Trained]:
    store = tmp_path_factory.mktemp("assisted") / "store"
    shutil.copytree(tiny_store, store)  # data and teacher are there, the rest is not
    return (store, *train(store, 2, Stopping()))


def test_each_learns_from_the_one_before(taught: tuple[Path, Plan, Trained]) -> None:
    _, plan, trained = taught
    first, second = trained.assistants
    assert first.parameters > second.parameters > plan.chosen.parameters
    assert inputs(first.stages[1].folder)["record"] == trained.recorded.key
    assert inputs(second.stages[1].folder)["assistant-1-record"] == first.stages[-1].key
    student = trained.stages["distil"].folder
    assert inputs(student)["assistant-2-record"] == second.stages[-1].key
    assert "record" not in inputs(student)


def test_an_assistant_answers_like_a_trained_model_in_the_teachers_space(taught: tuple[Path, Plan, Trained]) -> None:
    from edgedistill import record

    _, _, trained = taught
    teacher, answers = record.load(trained.recorded.folder), record.load(trained.assistants[0].stages[-1].folder)
    assert answers.ids == teacher.ids
    assert answers.logits.shape == teacher.logits.shape
    assert answers.pooled.shape == teacher.pooled.shape
    same = (answers.logits.argmax(1) == teacher.logits.argmax(1)).float().mean()
    assert same > 0.8
    # it was trained to point where the teacher's embeddings point
    near = (answers.pooled * teacher.pooled).sum(1) / (answers.pooled.norm(dim=1) * teacher.pooled.norm(dim=1))
    assert near.mean() > 0.5


def test_an_interrupted_build_goes_on_to_the_same_bytes(
    taught: tuple[Path, Plan, Trained], tiny_store: Path, tmp_path: Path
) -> None:
    store = shutil.copytree(tiny_store, tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        train(store, 2, Stopping("assistant-2:start"))
    again = Stopping()
    _, trained = train(store, 2, again)
    assert again.cached >= 6  # data, evidence, teacher, record and what the first assistant did
    whole = taught[2]
    for one, other in zip(trained.assistants, whole.assistants, strict=True):
        assert [item.key for item in one.stages] == [item.key for item in other.stages]
    name = "student.safetensors"
    assert trained.last.file(name).read_bytes() == whole.last.file(name).read_bytes()
    direct = Stopping()
    _, alone = train(store, 0, direct)
    assert alone.last.file(name).read_bytes() != whole.last.file(name).read_bytes()
    assert not any(stage.startswith("assistant") for stage in direct.begun)


def test_the_same_build_makes_the_same_plan_whatever_was_built_in_between(
    taught: tuple[Path, Plan, Trained],
) -> None:
    from edgedistill.pipeline import history
    from edgedistill.plan import FinishedBuild

    store, before, trained = taught
    request = json.loads((next((store / "evidence").glob("*/key.json"))).read_text())["spec"]["request"]
    record = FinishedBuild(
        request=request, family="bert", parameters=100_000, macs=10**6, int4_share=0, teacher_parameters=22_713_216,
        assistants=0, correct=500, teacher_correct=1000, rows=1000,
    )  # fmt: skip
    history.remember(store, history.Record(build=record))
    after, again = train(store, 2, Stopping())
    assert after == before
    assert again.last.key == trained.last.key
    other, _ = pipeline.train_student(PHONE, profile(1), store=Store(store), base=Path.cwd())
    assert other.chosen.quality is not None
    assert before.chosen.quality is not None
    assert other.chosen.quality.median < before.chosen.quality.median  # another question learns from it
