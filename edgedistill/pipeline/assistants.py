"""Teacher assistants: each is started and trained as a student is, in float, and then answers for the next one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.data import read_splits
from edgedistill.pipeline import steps
from edgedistill.pipeline.known import resolved_start
from edgedistill.pipeline.trained import Taught
from edgedistill.plan.stages import assistant_lessons
from edgedistill.specs import Assistant, Plan, Profile, Progress
from edgedistill.store import Finished, write_json
from edgedistill.teachers import Located

if TYPE_CHECKING:
    from edgedistill.pipeline import _Run


def train_assistants(
    run: _Run, plan: Plan, profile: Profile, located: Located, data: Finished, teacher: Finished, recorded: Finished
) -> tuple[Finished, tuple[Taught, ...]]:
    """Train each assistant of the plan from the one before; returns whose answers teach the student, and all."""
    from edgedistill.pipeline import key_seed

    between: list[Taught] = []
    for number, one in enumerate(plan.assistants, 1):
        lesson = profile.model_copy(
            update={
                "seed": key_seed(profile.seed, 100 + number),
                "stages": assistant_lessons(profile, plan.chosen, one),
            }
        )
        taught = _train(run, f"assistant-{number}:", one, lesson, located, (data, teacher, recorded))
        between.append(taught)
        recorded = taught.stages[-1]
    return recorded, tuple(between)


def _train(
    run: _Run,
    prefix: str,
    one: Assistant,
    lesson: Profile,
    located: Located,
    inputs: tuple[Finished, Finished, Finished],
) -> Taught:
    from edgedistill.pipeline import distil_stages

    data, teacher, recorded = inputs
    config = dict(one.config)
    init = "auto" if lesson.student.init == "layers" else lesson.student.init  # one that is larger may not fit
    student = resolved_start(lesson.student.model_copy(update={"init": init}), config, located)
    about = {"family": student.family, "config": config, "init": student.init, "vocabulary": student.vocabulary}
    start = run.stage(
        f"{prefix}start", "start", about | {"seed": lesson.seed, "threads": lesson.threads}, [data, teacher],
        lambda out: steps.start_student(
            student, config, teacher.folder, data.folder, lesson.seed, lesson.threads, out, run.progress
        ),
    )  # fmt: skip
    stages = distil_stages(run.stage, lesson, lesson, data, recorded, start, run.progress, prefix)
    last = stages[lesson.stages[-1].name]
    record = run.stage(
        f"{prefix}record", "record", {"family": student.family, "threads": lesson.threads}, [start, last, data],
        lambda out: _record(
            student.family, start.folder, last.folder, data.folder, lesson.threads, out, run.progress
        ),
    )  # fmt: skip
    return Taught(config, one.parameters, (start, *stages.values(), record))


def _record(family: str, start: Path, last: Path, data: Path, threads: int, out: Path, progress: Progress) -> None:
    """A trained assistant's answers for every row, as `record_teacher` writes a teacher's.

    Its pooled embedding is taken through its projector into the teacher's space, so that a student's own projector,
    made for the teacher, fits whoever teaches it.
    """
    steps.deterministic(threads)
    import torch

    from edgedistill import record
    from edgedistill.tasks import text_classification as task

    student, projector, tokenizer = steps.load_student(family, start, last)
    splits = read_splits(data)
    rows = {row.id: row for part in (splits.train, splits.transfer, splits.validation, splits.held_out) for row in part}
    sequences = task.encode(tokenizer, [row.text for row in rows.values()], student.config.max_length)
    progress.begin("record", len(sequences), "row")
    pad = task.pad_id(tokenizer)
    answers = record.answers(student, sequences, lambda batch: task.collate(batch, pad), progress)
    with torch.no_grad():
        pooled = projector(answers.pooled)
    record.save(out, record.Recorded(tuple(rows), answers.logits, pooled))
    quality = steps.score(student, tokenizer, data, "validation")
    facts = {"parameters": sum(p.numel() for p in student.parameters()), "validation": quality.model_dump()}
    write_json(out / "facts.json", facts)
    progress.end(f"validation accuracy {quality.accuracy:.2%}")
