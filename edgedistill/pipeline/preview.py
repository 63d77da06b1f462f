"""What a build would do, without doing it: the plan, and for each stage its key and whether the store has it already.

The keys are made by the very functions that run the stages, with a recorder in place of the store, so that a preview
cannot drift from the build. Nothing is written and torch is not imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill import catalog, pipeline
from edgedistill.data import make_splits
from edgedistill.pipeline import arms, history, steps
from edgedistill.pipeline.known import count_pieces, resolved_fit
from edgedistill.plan import make_plan
from edgedistill.plan.effort import efforts, host_speed
from edgedistill.plan.quality import TEACHER
from edgedistill.specs import Plan, Profile, Silent, Target
from edgedistill.store import Finished, Store, difference, is_intact, key_of, newest
from edgedistill.teachers import Located


@dataclass(frozen=True)
class StageState:
    """A stage that a build would ask the store for; `description` is what its key is the hash of."""

    name: str
    key: str
    done: bool
    description: Mapping[str, Any]


@dataclass(frozen=True)
class Preview:
    """The plan, the stages up to the last whose key can be known, and the teacher found (None: not on this machine)."""

    plan: Plan
    stages: tuple[StageState, ...]
    teacher: Located | None


class _Recorder(pipeline._Run):
    """Stands in for a run: writes down each stage's key and says where its folder would be."""

    def __init__(self, root: Path) -> None:
        self.root, self.progress = root, Silent()
        self.states: list[StageState] = []

    def stage(
        self,
        label: str,
        kind: str,
        spec: dict[str, Any],
        inputs: list[Finished],
        run: Callable[[Path], None],
        libraries: tuple[str, ...] = steps.LIBRARIES,
    ) -> Finished:
        """Record the stage; `run` is never called."""
        name = label.replace(":", "-")
        description = Store.describe(name, pipeline.REVISIONS[kind], spec, inputs, libraries)
        key = key_of(description)
        folder = self.root / name / key
        done = is_intact(folder)
        self.states.append(StageState(label, key, done, description))
        return Finished(name, key, folder, cached=done)


def preview(
    target: Target,
    profile: Profile,
    *,
    store: Path,
    base: Path,
    fleet: Sequence[Target] = (),
    baselines: bool = False,
    gpu: str = "",
) -> Preview:
    """Plan a build and look up its stages in the store at `store`, which need not exist.

    Without the teacher the plan is made all the same, and only the key of the data is known: each later key depends on
    the teacher's weights.

    Raises:
        SpecError: target, profile, data or a teacher that is present cannot be used.
        InfeasibleError: no candidate meets the budget.
    """
    located = find_teacher(profile)
    # Texts made by augmentation change neither the number of training rows nor the labels, and take a while to make.
    splits = make_splits(profile.data.model_copy(update={"transfer_factor": 0}), profile.seed, base)
    recorder, everyone, request = _Recorder(store), (target, *fleet), ""
    data = pipeline._data(recorder, profile, base)
    builds = tuple(one.build for one in history.records(store))
    if located:
        fit = resolved_fit(profile.teacher.fit, located, splits.labels)
        request = history.request_of(profile, located, fit, data.key)
        evidence = pipeline._evidence(recorder, profile, everyone, request, store)
        builds = history.kept(evidence.folder) if evidence.cached else builds
    size = located.parameters if located else None
    pieces = count_pieces(profile, located, splits.train) if located else None
    plan = make_plan(
        target,
        profile,
        fleet=fleet,
        rows=len(splits.train),
        classes=len(splits.labels),
        teacher_parameters=size,
        calibrations=history.calibrations(store, everyone),
        builds=builds,
        request=request,
        pieces=pieces,
    )
    if located:
        _after_the_data(recorder, plan, plan.profile, located, splits.labels, data, baselines)
    speed = host_speed(history.speeds(store, history.this_machine(profile.threads)))
    spent = efforts(plan, len(splits.train), size or TEACHER, speed, gpu)
    return Preview(plan.model_copy(update={"efforts": spent}), tuple(recorder.states), located)


def _after_the_data(
    run: _Recorder,
    plan: Plan,
    profile: Profile,
    located: Located,
    labels: tuple[str, ...],
    data: Finished,
    baselines: bool,
) -> None:
    """The same calls in the same order as `pipeline.build`."""
    fit = resolved_fit(profile.teacher.fit, located, labels)
    try:
        trained = pipeline.train(run, plan, profile, located, fit, data)
    except FileNotFoundError:  # the keys behind a measurement that was not made depend on what it will say
        return
    profile = trained.profile
    frozen = pipeline._freeze(run, profile, labels, located, trained)
    exported = {name: pipeline._export(run, profile, name, frozen) for name in plan.formats}
    for name in plan.formats:
        pipeline._verify(run, profile, name, frozen, exported[name], trained)
    pipeline._references(run, profile, trained)
    if baselines:
        arms.arm_stages(run.stage, profile, trained, run.progress)


def find_teacher(profile: Profile) -> Located | None:
    """The first of the profile's sources that is present, None when none is.

    Raises:
        TeacherError: one is present and cannot be used.
    """
    for source in profile.teacher.sources:
        found: Located | None = catalog.load_plugin("teachers", source.kind).locate(source)
        if found:
            return found
    return None


def why(root: Path, state: StageState) -> list[str]:
    """Lines saying how the stage differs from the one of that name that the store finished last; empty: in nothing."""
    name = state.name.replace(":", "-")
    before = newest(root, name)
    if before is None:
        return [f"no stage {name!r} was ever finished in {root}"]
    stored = json.loads(json.dumps(state.description))  # as the store would read it back: tuples are lists there
    return difference(_by_input(before), _by_input(stored))


def _by_input(description: Mapping[str, Any]) -> dict[str, Any]:
    """The description with its inputs as a mapping, so that a difference names the input that changed."""
    inputs = description.get("inputs")
    named = {item["stage"]: item["key"] for item in inputs} if isinstance(inputs, list) else inputs
    return {**description, "inputs": named}
