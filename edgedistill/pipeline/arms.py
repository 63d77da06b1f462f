"""The honest arms: the same student, data, augmentation and number of steps, without the teacher's soft answers.

They say what distillation itself is worth. An arm that may not ask the teacher has no use for the transfer set, whose
rows have no labels: it spends the same number of steps on labelled rows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgedistill.pipeline import proofs, steps
from edgedistill.pipeline.trained import Trained
from edgedistill.specs import LossTerm, Plan, Profile, Progress, Quality
from edgedistill.store import Finished, write_json

ARMS = {
    "labels alone": LossTerm(loss="cross_entropy"),
    "label smoothing": LossTerm(loss="cross_entropy", params={"smoothing": 0.1}),
    "hard pseudo-labels": LossTerm(loss="hard_pseudo_label"),
}


def arm_profile(profile: Profile, name: str) -> Profile:
    """The profile with every stage's losses replaced by the arm's one; all else is equal."""
    swapped = tuple(stage.model_copy(update={"losses": (ARMS[name],)}) for stage in profile.stages)
    return profile.model_copy(update={"stages": swapped})


def train_arms(
    stage: Callable[..., Finished], plan: Plan, profile: Profile, trained: Trained, watch: Progress
) -> dict[str, Quality]:
    """Train every arm and return its held-out quality, with fake-quant on as shipped."""
    done = arm_stages(stage, profile, trained, watch)
    return {name: Quality(**proofs.read_json(scored.file("quality.json"))) for name, scored in done.items()}


def arm_stages(
    stage: Callable[..., Finished], profile: Profile, trained: Trained, watch: Progress
) -> dict[str, Finished]:
    """Every stage of every arm in order; returns the last one of each, which scores it."""
    from edgedistill.pipeline import distil_stages

    found = {}
    for name in ARMS:
        prefix = f"{name.replace(' ', '-')}:"
        stages = distil_stages(
            stage, profile, arm_profile(profile, name), trained.data, trained.recorded, trained.start, watch, prefix
        )
        last = stages[profile.stages[-1].name]
        inputs = [last, trained.start, trained.data]
        about = {"family": profile.student.family, "scheme": profile.export.scheme.model_dump()}

        def run(out: Path, last: Finished = last) -> None:
            _score(profile, trained, last, out, watch)

        found[name] = stage(f"{prefix}score", "verify", about, inputs, run)
    return found


def _score(profile: Profile, trained: Trained, last: Finished, out: Path, watch: Progress) -> None:
    from edgedistill import quant

    steps.deterministic(profile.threads)
    student, _, tokenizer = steps.load_student(profile.student.family, trained.start.folder, None)
    quant.prepare(student, profile.export.scheme, steps.tensors_of(profile.student.family, student))
    steps.load_weights(student, last.folder)
    quant.freeze_observers(student)
    quality = steps.score(student, tokenizer, trained.data.folder, "held_out")
    write_json(out / "quality.json", quality.model_dump())
    watch.end(f"held-out accuracy {quality.accuracy:.2%}")
