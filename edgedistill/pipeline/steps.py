"""The stages of a build. Each reads finished folders and writes one; what is heavy is imported when a stage runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgedistill import catalog, students
from edgedistill.data import Row, make_splits, read_splits, write_splits
from edgedistill.data.tokenizer import read_tokenizer
from edgedistill.errors import TeacherError
from edgedistill.specs import DataSpec, DistilSpec, FitSpec, Profile, Progress, QuantScheme, StudentSpec
from edgedistill.store import Finished, write_json
from edgedistill.teachers import Located

CALIBRATION_BATCH = 32
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def prepare_data(spec: DataSpec, seed: int, base: Path, out: Path, progress: Progress) -> None:
    """Read, check and split the rows; make the transfer set."""
    splits = make_splits(spec, seed, base)
    write_splits(out, splits)
    progress.end(
        f"{len(splits.train)} train, {len(splits.transfer)} transfer, {len(splits.validation)} validation, "
        f"{len(splits.held_out)} held-out rows, {len(splits.labels)} labels"
    )


def fit_teacher(
    located: Located, fit: FitSpec, max_length: int, seed: int, threads: int, data: Path, out: Path, progress: Progress
) -> None:
    """Load the located teacher, fit it to the task, save it with its labels in the order of its logits."""
    deterministic(threads)
    from edgedistill.fit import fit_network
    from edgedistill.teachers import _network as networks

    splits = read_splits(data)
    labels = own_labels(located, splits.labels) if fit.method == "none" else splits.labels
    body = networks.load_body(located, classifier=fit.method == "none")
    tokenizer = networks.load_tokenizer(located.folder, body.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    network = fit_network(body, tokenizer, splits, fit, max_length, seed, out, progress)
    networks.save(out, network, tokenizer, labels)
    progress.end(f"fit: {fit.method}, {len(labels)} labels")


def own_labels(located: Located, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The label of each of the classifier's outputs, in the data's spelling.

    `LABEL_3`, the name transformers gives when nobody named a class, stands for the data's label `3`.

    Raises:
        TeacherError: if the teacher lacks a label of the data.
    """
    names = tuple(name.removeprefix("LABEL_") if name not in wanted else name for name in located.labels)
    lost = sorted(set(wanted) - set(names))
    if lost:
        raise TeacherError(
            f"teacher {located.source}: it does not know {len(lost)} of the data's {len(wanted)} labels, "
            f"e.g. {lost[0]!r}. "
            f"It knows {', '.join(names[:5])}{' …' if len(names) > 5 else ''}. "
            'Rename the labels, or give it a new head with [teacher.fit] method = "head".'
        )
    return names


def record_teacher(teacher: Path, data: Path, max_length: int, threads: int, out: Path, progress: Progress) -> None:
    """The teacher's logits and pooled embedding for every row, by sample id; columns in the data's label order."""
    deterministic(threads)
    from edgedistill import record
    from edgedistill.tasks import text_classification as task
    from edgedistill.teachers import _network as networks

    network, tokenizer, labels = networks.load(teacher)
    splits = read_splits(data)
    rows = {row.id: row for part in (splits.train, splits.transfer, splits.validation, splits.held_out) for row in part}
    sequences = task.encode(tokenizer, [row.text for row in rows.values()], max_length)
    progress.begin("record", len(sequences), "row")
    pad = task.pad_id(tokenizer)
    answers = record.answers(network, sequences, lambda batch: task.collate(batch, pad), progress)
    columns = [labels.index(name) for name in splits.labels]
    record.save(out, record.Recorded(tuple(rows), answers.logits[:, columns], answers.pooled))
    validation = record.load(out).of([row.id for row in splits.validation]).logits.numpy()
    quality = task.quality(validation, task.class_ids([row.label for row in splits.validation], splits.labels))
    facts = {"parameters": sum(p.numel() for p in network.parameters()), "validation": quality.model_dump()}
    write_json(out / "facts.json", facts)
    progress.end(f"validation accuracy {quality.accuracy:.2%}")


def start_student(
    spec: StudentSpec,
    config: dict[str, Any],
    teacher: Path,
    data: Path,
    seed: int,
    threads: int,
    out: Path,
    progress: Progress,
) -> None:
    """The student before training: tokenizer trimmed to the task, weights from the teacher or random."""
    deterministic(threads)
    import torch
    from safetensors.torch import save_file

    from edgedistill.teachers import _network as networks

    network, tokenizer, _ = networks.load(teacher)
    splits = read_splits(data)
    texts = [row.text for row in splits.train]
    torch.manual_seed(seed)
    starter = students.part(spec.family, "start").start
    started = starter(config, spec.init, spec.vocabulary, tokenizer, network.body, texts)
    save_file(started.weights, out / "student.safetensors")
    save_file(started.projector, out / "projector.safetensors")
    started.tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "config.json", started.config)
    write_json(out / "facts.json", {"init": spec.init})
    progress.end(started.note)


def distil_stage(
    spec: DistilSpec,
    profile: Profile,
    seed: int,
    start: Finished,
    before: Finished,
    data: Finished,
    recorded: Finished,
    out: Path,
    progress: Progress,
) -> None:
    """One stage of distillation, continuing from the weights in `before`."""
    deterministic(profile.threads)
    from safetensors.torch import save_file

    from edgedistill import distil, quant

    student, projector, tokenizer = load_student(profile.student.family, start.folder, before.folder)
    if spec.fake_quant:
        tensors = tensors_of(profile.student.family, student)
        quant.prepare(student, profile.export.scheme, tensors, spec.scales, spec.ranges)
        _calibrate(student, tokenizer, data.folder)
    losses = {term.loss: catalog.load_plugin("losses", term.loss) for term in spec.losses}
    asks_teacher = any(need != "labels" for loss in losses.values() for need in loss.NEEDS)
    splits = read_splits(data.folder)
    steps = distil.steps_of(spec, len(splits.train) + len(splits.transfer))
    # without the teacher, unlabelled rows teach nothing: the same number of steps is spent on labelled ones
    rows = [*splits.train, *(splits.transfer if asks_teacher else ())]
    spec = spec.model_copy(update={"epochs": steps / -(-len(rows) // spec.batch_size), "steps_min": 1})
    material = _material(tokenizer, student.config.max_length, rows, splits.labels, recorded.folder)
    progress.begin(spec.name, steps, "step")
    freezer = (lambda: quant.freeze_observers(student)) if spec.fake_quant else None
    curve = distil.distil(spec, student, projector, material, losses, seed, out, progress, freezer)
    save_file({k: v.contiguous() for k, v in student.state_dict().items()}, out / "student.safetensors")
    save_file({k: v.contiguous() for k, v in projector.state_dict().items()}, out / "projector.safetensors")
    quality = score(student, tokenizer, data.folder, "validation")
    write_json(out / "facts.json", {"curve": curve, "validation": quality.model_dump()})
    progress.end(f"loss {curve[-1][1]:.4f}, validation accuracy {quality.accuracy:.2%}")


def freeze_student(
    family: str,
    scheme: QuantScheme,
    threads: int,
    task_facts: dict[str, Any],
    start: Path,
    last: Path,
    out: Path,
    progress: Progress,
) -> None:
    """Lower the trained student to codes and scales."""
    deterministic(threads)
    from edgedistill import quant

    student, _, tokenizer = load_student(family, start, None)
    quant.prepare(student, scheme, tensors_of(family, student), quant.rule_of(names_in(last)))
    load_weights(student, last)
    quant.freeze_observers(student)
    student.eval()
    words = {"tokenizer_json": json.loads(tokenizer.to_str())}  # a part of the student: other ids, another answer
    frozen = quant.freeze(student, family, student.config, scheme, task_facts | words)
    frozen.save(out)
    tokenizer.save(str(out / "tokenizer.json"))
    progress.end(f"{len(frozen.quantized)} tensors on the int8 grid")


def load_student(family: str, start: Path, weights: Path | None) -> tuple[Any, Any, Any]:
    """The student, its projector and its tokenizer. `weights` is a folder with trained ones; None: as built.

    A student that was trained with fake quantization comes back float: its ranges and scales are left behind, and a
    next stage finds its own.
    """
    from safetensors.torch import load_file
    from torch import nn

    plugin = catalog.load_plugin("students", family)
    config = plugin.Config(**json.loads((start / "config.json").read_text(encoding="utf-8")))
    student = students.part(family, "module").build(config)
    source = weights or start
    projector_weights = load_file(source / "projector.safetensors")
    wide, narrow = projector_weights["weight"].shape
    projector = nn.Linear(narrow, wide)
    projector.load_state_dict(projector_weights)
    if weights:
        trained = load_file(weights / "student.safetensors")
        student.load_state_dict({name: trained[name] for name in student.state_dict()})
    return student, projector, read_tokenizer(start)


def tensors_of(family: str, student: Any) -> Any:
    """The family's list of what is stored of this student: it decides which weight lies on which grid."""
    return catalog.load_plugin("students", family).tensors(student.config)


def names_in(folder: Path) -> list[str]:
    """The names of the student's tensors in a folder that a stage wrote."""
    from safetensors import safe_open

    with safe_open(folder / "student.safetensors", "np") as file:
        return list(file.keys())


def load_weights(student: Any, folder: Path) -> None:
    """Put the folder's weights into the student."""
    from safetensors.torch import load_file

    student.load_state_dict(load_file(folder / "student.safetensors"))


def score(student: Any, tokenizer: Any, data: Path, split: str) -> Any:
    """The student's Quality on one split."""
    from edgedistill.tasks import text_classification as task

    splits = read_splits(data)
    rows = getattr(splits, split)
    logits = logits_of(student, tokenizer, [row.text for row in rows])
    return task.quality(logits, task.class_ids([row.label for row in rows], splits.labels))


def logits_of(student: Any, tokenizer: Any, texts: list[str]) -> Any:
    """The student's logits for texts, as a numpy array [rows, classes]."""
    from edgedistill import record
    from edgedistill.specs import Silent
    from edgedistill.tasks import text_classification as task

    sequences = task.encode(tokenizer, texts, student.config.max_length)
    pad = task.pad_id(tokenizer)
    return record.answers(student, sequences, lambda batch: task.collate(batch, pad), Silent()).logits.numpy()


def _calibrate(student: Any, tokenizer: Any, data: Path) -> None:
    """Show the calibration rows to a student with static activations, so that training starts from sane ranges."""
    import torch

    from edgedistill.tasks import text_classification as task

    texts = [row.text for row in read_splits(data).calibration]
    sequences, pad = task.encode(tokenizer, texts, student.config.max_length), task.pad_id(tokenizer)
    student.train()
    with torch.no_grad():
        for start in range(0, len(sequences), CALIBRATION_BATCH):
            student(*task.collate(sequences[start : start + CALIBRATION_BATCH], pad))


def _material(tokenizer: Any, max_length: int, rows: list[Row], labels: tuple[str, ...], recorded: Path) -> Any:
    import torch

    from edgedistill import distil, record
    from edgedistill.tasks import text_classification as task

    pad = task.pad_id(tokenizer)
    special = [tokenizer.token_to_id(name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]
    return distil.Material(
        sequences=task.encode(tokenizer, [row.text for row in rows], max_length),
        labels=torch.tensor(task.class_ids([row.label for row in rows], labels)),
        teacher=record.load(recorded).of([row.id for row in rows]),
        collate=lambda batch: task.collate(batch, pad),
        mask_id=special[-1],
        special_ids=frozenset(special),
    )


def deterministic(threads: int) -> None:
    """Fix what changes the bytes: the number of threads splits sums, and some operators have two algorithms."""
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
