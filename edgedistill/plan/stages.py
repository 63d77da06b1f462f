"""The stages of a build, in order, each with the exact values that drive it and why it is there."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from edgedistill import catalog
from edgedistill.plan.check import resolve, teacher_outputs
from edgedistill.plan.mixed import mixed_scheme
from edgedistill.plan.naming import describe
from edgedistill.specs import Assistant, Budget, Candidate, DistilSpec, PlannedStage, Profile, Target

STARTS = {
    "auto": "the teacher's own layers, reduced where the student is smaller, if it is a BERT they can be cut from; "
    "else its word vectors, their width reduced by PCA",
    "layers": "the teacher's own layers, reduced where the student is smaller",
    "embeddings": "the teacher's word vectors, their width reduced by PCA",
    "random": "random weights",
}


def stages(
    target: Target,
    profile: Profile,
    budget: Budget,
    chosen: Candidate,
    rows: int | None,
    assistants: Sequence[Assistant] = (),
    *,
    fleet: Sequence[Target] = (),
) -> tuple[PlannedStage, ...]:
    """From the data to the gate; `fleet` are all devices, with the formats that each of them runs.

    Raises:
        SpecError: if a stage of training names an unknown loss or parameter.
    """
    texts = None if rows is None else rows * (1 + profile.data.transfer_factor)
    training = [resolve(spec, profile) for spec in profile.stages]
    return (
        *_prepare(profile, chosen, training),
        *(
            _assistant(number, one, assistant_lessons(profile, chosen, one), texts)
            for number, one in enumerate(assistants, 1)
        ),
        *_train(target, profile, chosen, training, texts),
        *_pack(target, profile, fleet or (target,)),
        *_judge(target, profile, budget),
    )


def check_losses(profile: Profile) -> None:
    """Check every loss and parameter of the profile's stages.

    Raises:
        SpecError: if a stage of training names an unknown loss or parameter.
    """
    for spec in profile.stages:
        resolve(spec, profile)


def assistant_lessons(profile: Profile, chosen: Candidate, one: Assistant) -> tuple[DistilSpec, ...]:
    """The stages that an assistant is trained with: the student's in float, as nobody ships an assistant.

    The learning rate falls as the width grows: Adam's best rate for a matrix goes as 1 / its inputs (Yang et al. 2022).
    """
    floats = [spec for spec in profile.stages if not spec.fake_quant] or list(profile.stages)
    slower = int(str(chosen.config["width"])) / int(str(one.config["width"]))
    changes = {"fake_quant": False, "scales": "absmax", "ranges": "min_max"}
    return tuple(
        spec.model_copy(update={**changes, "learning_rate": spec.learning_rate * min(slower, 1.0)}) for spec in floats
    )


def _assistant(number: int, one: Assistant, lessons: Sequence[DistilSpec], rows: int | None) -> PlannedStage:
    teacher = "the teacher" if number == 1 else f"assistant {number - 1}"
    steps = "" if rows is None else f", {sum(_steps(spec, rows) for spec in lessons)} steps"
    shape = ", ".join(
        f"{key}={value}" for key, value in one.config.items() if key in ("layers", "width", "heads", "ffn")
    )
    return _stage(
        f"assistant {number}",
        {"config": dict(one.config), "stages": [spec.name for spec in lessons]},
        f"{one.parameters:,} parameters ({shape}); learns from {teacher}{steps}, in float, and teaches what comes next",
    )


def _steps(spec: DistilSpec, rows: int) -> int:
    """As `distil.steps_of` counts them."""
    return max(spec.steps_min, round(spec.epochs * ceil(rows / spec.batch_size)))


def _prepare(profile: Profile, chosen: Candidate, training: list[DistilSpec]) -> list[PlannedStage]:
    student, teacher = profile.student, profile.teacher
    outputs = teacher_outputs(tuple(term for spec in training for term in spec.losses))
    config = {"init": student.init, "family": student.family, "config": dict(chosen.config)}
    return [
        _stage(
            "data",
            profile.data.model_dump(mode="json"),
            "one split for every stage: train, transfer, calibration, held-out",
        ),
        _stage(
            "teacher",
            teacher.model_dump(mode="json"),
            f"the first present of {', '.join(map(str, teacher.sources))}; fit to the task: {teacher.fit.method}",
        ),
        _stage(
            "record",
            {"outputs": list(outputs), "max_length": teacher.max_length},
            f"the teacher runs once; the losses ask for {', '.join(outputs) or 'nothing of it'}",
        ),
        _stage("init", config, f"{STARTS[student.init]}; {describe(chosen)}"),
    ]


def _train(
    target: Target, profile: Profile, chosen: Candidate, training: list[DistilSpec], texts: int | None
) -> list[PlannedStage]:
    found = [_distil(spec, texts) for spec in training]
    mixed, student = profile.export.mixed, profile.student
    if mixed is not None:
        family = catalog.load_plugin("students", student.family)
        config = family.Config(**chosen.config)
        tensors = family.tensors(config)
        mixed_scheme(profile.export, tensors, target.formats, student.buckets, config)  # refuses what can never fit
        limit = f"files of {mixed.size_mb:g} MB" if mixed.share is None else f"{mixed.share:.0%} of the weights' bytes"
        why = f"on the validation rows: what {mixed.narrow.label} costs each tensor; as many get it as {limit} need"
        first = next(n for n, spec in enumerate(training) if spec.fake_quant)
        found.insert(first, _stage("sensitivity", mixed.model_dump(mode="json"), why))
    return found


def _distil(spec: DistilSpec, rows: int | None) -> PlannedStage:
    terms = " + ".join(f"{term.weight:g} {term.loss}" for term in spec.losses)
    steps = "" if rows is None else f", {_steps(spec, rows)} steps"
    grid = "on the grid of integers that is shipped" if spec.fake_quant else "in float"
    return _stage(spec.name, spec.model_dump(mode="json"), f"{terms}; {spec.epochs:g} epochs{steps}, {grid}")


def _pack(target: Target, profile: Profile, fleet: Sequence[Target]) -> list[PlannedStage]:
    scheme, buckets = profile.export.scheme, profile.student.buckets
    found = [
        _stage(
            "freeze", scheme.model_dump(mode="json"), "the one source of every file: integer codes, scales, float rest"
        )
    ]
    for name in target.formats:
        lengths, titles = ", ".join(map(str, buckets)), [one.title for one in fleet if name in one.formats]
        runs = f"{' and '.join(titles)} run{'s' * (len(titles) == 1)}"
        values = {"format": name, "buckets": list(buckets), **profile.export.model_dump(mode="json")}
        found.append(_stage(f"export:{name}", values, f"{runs} it; one signature for each of {lengths} tokens"))
    for name in target.formats:
        values = {"format": name, "argmax_agreement_min": profile.quality.argmax_agreement_min}
        found.append(_stage(f"verify:{name}", values, "codes read back from the file, file executed on held-out rows"))
    return found


def _judge(target: Target, profile: Profile, budget: Budget) -> list[PlannedStage]:
    values = {"runner": target.runner, "threads": target.threads, "buckets": list(profile.student.buckets)}
    where = (
        "on this machine" if target.runner == "host" else f"on the device, if one is reached through {target.runner}"
    )
    limits = ", ".join(f"{name} ≤ {value:g}" for name, value in budget.limits().items()) or "no limit"
    return [
        _stage("measure", values, f"latency and memory {where}; never cached, as it is an observation"),
        _stage(
            "gate",
            {"budget": budget.model_dump(mode="json"), "quality": profile.quality.model_dump(mode="json")},
            limits,
        ),
    ]


def _stage(name: str, spec: dict[str, Any], why: str) -> PlannedStage:
    return PlannedStage(name=name, spec=spec, why=why)
