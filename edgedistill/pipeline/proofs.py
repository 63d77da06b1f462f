"""The stages after training: export, verify what was exported, and make the files that the ledger compares it with."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedistill import catalog
from edgedistill.data import read_splits
from edgedistill.data.tokenizer import read_tokenizer
from edgedistill.errors import MissingDependency
from edgedistill.pipeline import executed, golden, steps
from edgedistill.pipeline.trained import Trained
from edgedistill.specs import Artifact, Profile, Progress, Rights
from edgedistill.store import Finished, bytes_of, digest_of, write_json


def model_name(format_name: str) -> str:
    """The file name of an exported model, e.g. `model.tflite`."""
    return f"model{catalog.constants('exporters', format_name)['SUFFIX']}"


def require(formats: Sequence[str]) -> None:
    """Refuse, before anything slow, a format whose packages are not installed.

    Raises:
        MissingDependency: with the command that installs them.
    """
    for name in formats:
        about = catalog.constants("exporters", name)
        missing = [package for package in about["REQUIRES"] if importlib.util.find_spec(package) is None]
        if missing:
            wanted = f"'edgedistill[{about['EXTRA']}]'" if about["EXTRA"] else " ".join(missing)
            raise MissingDependency(
                f"format {name!r} needs {', '.join(missing)}, not installed here: pip install {wanted}"
            )


def export(format_name: str, profile: Profile, frozen: Finished, out: Path, progress: Progress) -> None:
    """Write the model file; the exporter itself refuses a file that does not hold the trained codes."""
    steps.deterministic(profile.threads)
    from edgedistill import quant

    student = quant.FrozenStudent.load(frozen.folder)
    path = out / model_name(format_name)
    exporter = catalog.load_plugin("exporters", format_name)
    exporter.export(student, profile.student.buckets, path)
    artifact = Artifact(
        path=path.name,
        format=format_name,
        sha256=digest_of(path),
        size_mb=bytes_of(path) / 1e6,
        scheme=student.scheme,
        audit=exporter.audit(path),
    )
    write_json(out / "artifact.json", artifact.model_dump())
    progress.end(f"{artifact.size_mb:.3f} MB")


def verify(
    format_name: str,
    profile: Profile,
    frozen: Finished,
    exported: Finished,
    trained: Trained,
    out: Path,
    progress: Progress,
) -> None:
    """Read the file's codes back, run it on every held-out row, and compare with the frozen student and the teacher."""
    steps.deterministic(profile.threads)
    import torch

    from edgedistill import evaluate, quant, record
    from edgedistill.gate import pair
    from edgedistill.tasks import text_classification as task

    splits = read_splits(trained.data.folder)
    truth = task.class_ids([row.label for row in splits.held_out], splits.labels)
    texts = [row.text for row in splits.held_out]
    student = quant.FrozenStudent.load(frozen.folder)
    path = exported.file(model_name(format_name))
    exporter = catalog.load_plugin("exporters", format_name)
    difference = evaluate.code_difference(student, exporter.read_back(path))
    tokenizer = read_tokenizer(trained.start.folder)
    sequences = task.encode(tokenizer, texts, student.config["max_length"])
    progress.begin(f"verify:{format_name}", 2 * len(sequences), "row")
    seen = executed.answers(format_name, student, path, sequences, task.pad_id(tokenizer), progress)
    reference, file = seen.reference, seen.file
    teacher = record.load(trained.recorded.folder).of([row.id for row in splits.held_out]).logits.numpy()
    plain, _, _ = steps.load_student(profile.student.family, trained.start.folder, trained.float_student.folder)
    parity = evaluate.parity(reference, file, truth, len(student.quantized), difference)
    parity = executed.check(format_name, student, path, seen, parity, profile.quality.argmax_agreement_min)
    answers = {
        "teacher": teacher,
        "float": steps.logits_of(plain, tokenizer, texts),
        "frozen": reference,
        "file": file,
    }
    write_json(out / "parity.json", parity.model_dump())
    write_json(
        out / "quality.json", {name: task.quality(logits, truth).model_dump() for name, logits in answers.items()}
    )
    right = {name: (logits.argmax(-1) == torch.tensor(truth).numpy()).tolist() for name, logits in answers.items()}
    write_json(out / "paired.json", pair(right["teacher"], right["file"]).model_dump())
    write_json(out / "right.json", Rights.encode(right["file"]))
    write_json(
        out / "golden.json",
        golden.made(
            format_name,
            splits.held_out[: profile.export.golden_samples],
            sequences,
            file,
            exporter.load(path),
            splits.labels,
        ),
    )
    write_json(out / "parameters.json", {"student": sum(p.numel() for p in plain.parameters())})
    told = f"codes equal, argmax agreement {parity.argmax_agreement:.4f}, held-out accuracy {parity.accuracy_file:.2%}"
    progress.end(f"{told}, first differs at {parity.first_divergence}" if parity.first_divergence else told)


def run_file(runner: Any, sequences: Sequence[Sequence[int]], progress: Progress) -> Any:
    """The file's logits for every sequence, as a numpy array [rows, classes]."""
    import numpy as np

    from edgedistill.tasks import text_classification as task

    out = []
    for item in sequences:
        out.append(task.run_file(runner, item))
        progress.advance(1)
    return np.stack(out)


def student_references(profile: Profile, trained: Trained, out: Path, progress: Progress) -> None:
    """Files to compare with: the student in float, and the same one quantized after training.

    Also the token ids that every file of a student is timed on: real held-out texts, padded to the longest bucket.
    """
    steps.deterministic(profile.threads)
    from edgedistill.exporters.tflite import load, reference
    from edgedistill.tasks import text_classification as task

    splits = read_splits(trained.data.folder)
    truth = task.class_ids([row.label for row in splits.held_out], splits.labels)
    student, _, tokenizer = steps.load_student(
        profile.student.family, trained.start.folder, trained.float_student.folder
    )
    buckets = profile.student.buckets
    sequences = task.encode(tokenizer, [row.text for row in splits.held_out], buckets[-1])
    timed = sequences[:TIMED_SAMPLES]
    progress.begin("references:student", 2 + len(sequences), "step")
    reference.export_float(student, buckets, timed, out / "student_float.tflite")
    progress.advance(1)
    reference.quantize_after_training(out / "student_float.tflite", out / "student_ptq.tflite")
    progress.advance(1)
    ptq = task.quality(run_file(load(out / "student_ptq.tflite"), sequences, progress), truth)
    write_json(out / "quality.json", {"ptq": ptq.model_dump()})
    write_json(out / "inputs.json", padded(timed, buckets[-1], task.pad_id(tokenizer)))
    progress.end(f"post-training int8: held-out accuracy {ptq.accuracy:.2%}")


def teacher_reference(profile: Profile, teacher: Finished, data: Finished, out: Path, progress: Progress) -> None:
    """The teacher as a float file, and the token ids that it is timed on. Students come and go, it stays."""
    steps.deterministic(profile.threads)
    from edgedistill.exporters.tflite import reference
    from edgedistill.tasks import text_classification as task
    from edgedistill.teachers import _network as networks

    texts = [row.text for row in read_splits(data.folder).held_out[:TIMED_SAMPLES]]
    network, tokenizer, _ = networks.load(teacher.folder)
    longest = profile.student.buckets[-1]
    timed = task.encode(tokenizer, texts, longest)
    progress.begin("references:teacher", 1, "step")
    reference.export_float(network, (longest,), timed, out / "teacher_float.tflite")
    write_json(out / "inputs.json", padded(timed, longest, task.pad_id(tokenizer)))
    progress.end(f"{bytes_of(out / 'teacher_float.tflite') / 1e6:.1f} MB")


TIMED_SAMPLES = 32


def padded(sequences: Sequence[Sequence[int]], length: int, pad: int) -> dict[str, list[list[int]]]:
    """The inputs of signature `length_N` for every sequence, as JSON."""
    return {
        "input_ids": [[*item, *[pad] * (length - len(item))] for item in sequences],
        "attention_mask": [[1] * len(item) + [0] * (length - len(item)) for item in sequences],
    }


def read_json(path: Path) -> Any:
    """The value of a JSON file that a stage wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
