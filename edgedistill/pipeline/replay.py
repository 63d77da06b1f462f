"""Prove that a bundle's model is what was trained: codes and scales from its bytes, and the golden samples replayed."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgedistill import catalog
from edgedistill.errors import SpecError, VerificationError
from edgedistill.pipeline import proofs
from edgedistill.pipeline.golden import GoldenSample
from edgedistill.pipeline.recheck import Bundle, Verified, check_files, golden_samples, inside, model_path, read_json
from edgedistill.specs import Progress, Silent

# golden.json keeps six decimals; on the processor it was made on, the file answers the same to the last of them.
ROUNDING = 1e-6


def verify(bundle: Bundle, *, tolerance: float = 0.0, progress: Progress | None = None) -> Verified:
    """Hashes, then codes and scales read back against the frozen student, then every golden sample.

    `tolerance` is the difference of a logit that is accepted, as a fraction of the sample's largest: another kind of
    processor rounds floats differently, and a value between two codes then takes the other one.

    Raises:
        VerificationError: with the first mismatch.
        SpecError: a file of the bundle is missing or damaged.
    """
    watch = progress or Silent()
    proofs.require([artifact.format for artifact in bundle.manifest.artifacts])
    watch.begin("files")
    files = check_files(bundle)
    watch.end(f"{files} files have the manifest's hashes")
    from edgedistill.quant import FrozenStudent

    watch.begin("codes")
    frozen = FrozenStudent.load(bundle.folder / "frozen")
    _check_labels(bundle, frozen)
    worst, count = 0.0, 0
    words = {"tokenizer_json": read_json(bundle.folder, "tokenizer.json")}  # some formats carry it in the model's file
    told = dataclasses.replace(frozen, task=frozen.task | words)
    for artifact in bundle.manifest.artifacts:
        catalog.load_plugin("exporters", artifact.format).verify(told, model_path(bundle, artifact))
    watch.end(f"codes and scales of {len(frozen.quantized)} tensors equal the frozen student's")
    samples = golden_samples(bundle)
    watch.begin("golden", len(samples) * len(bundle.manifest.artifacts), "sample")
    _check_ids(bundle, frozen, samples)
    for artifact in bundle.manifest.artifacts:
        runner = catalog.load_plugin("exporters", artifact.format).load(model_path(bundle, artifact))
        for sample in samples:
            worst = max(worst, _replay(bundle, frozen, runner, sample, artifact.format, tolerance))
            count += 1
            watch.advance(1)
    watch.end(f"{count} samples replayed through the file")
    return Verified(files, len(frozen.quantized), count, worst)


def _check_labels(bundle: Bundle, frozen: Any) -> None:
    try:
        labels = inside(bundle.folder, "labels.txt").read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise SpecError(f"{bundle.folder / 'labels.txt'}: not UTF-8 text.") from None
    if labels != frozen.task.get("labels") or labels != bundle.manifest.data.get("labels"):
        raise VerificationError(f"{bundle.folder / 'labels.txt'}: differs from the labels of the frozen student.")


def _check_ids(bundle: Bundle, frozen: Any, samples: tuple[GoldenSample, ...]) -> None:
    """The bundle's tokenizer still makes of each text the ids that the file was run on."""
    from tokenizers import Tokenizer

    path = inside(bundle.folder, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for a damaged file
        raise SpecError(f"{path}: not a tokenizer: {str(error)[:200]}.") from None
    task = catalog.load_plugin("tasks", bundle.profile.task)
    found = task.encode(tokenizer, [sample.text for sample in samples], frozen.config["max_length"])
    for sample, ids in zip(samples, found, strict=True):
        if list(ids) != list(sample.input_ids):
            raise VerificationError(f"golden sample {sample.id}: the tokenizer makes other ids of its text.")


def _replay(
    bundle: Bundle, frozen: Any, runner: Any, sample: GoldenSample, format_name: str, tolerance: float
) -> float:
    """Run one sample; returns the largest difference of a logit."""
    import numpy as np

    told = sample.answers[format_name]

    task = catalog.load_plugin("tasks", bundle.profile.task)
    labels = frozen.task["labels"]
    vocabulary = frozen.config["vocabulary"]
    if not all(0 <= item < vocabulary for item in sample.input_ids) or len(told.logits) != len(labels):
        raise SpecError(f"{bundle.folder / 'golden.json'}: sample {sample.id} does not fit the model.")
    answer = task.run_file(runner, sample.input_ids)
    signature = task.signature_for(runner.signatures, len(sample.input_ids)).name
    difference = float(np.abs(answer - np.asarray(told.logits)).max())
    allowed = ROUNDING + tolerance * float(np.abs(answer).max())
    label = labels[int(answer.argmax())]
    if signature != told.signature or label != told.label:
        raise VerificationError(
            f"golden sample {sample.id}: the {format_name} file answers {label!r} through {signature}, "
            f"golden.json says {told.label!r} through {told.signature}."
        )
    if not difference <= allowed:  # written so that NaN is a mismatch
        raise VerificationError(
            f"golden sample {sample.id}: a logit differs by {difference:.3g}, allowed {allowed:.3g}. On another "
            "kind of processor than the one that built it small differences are normal: --tolerance 0.02 accepts them."
        )
    return difference
