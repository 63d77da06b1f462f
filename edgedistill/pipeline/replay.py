"""Prove that a bundle's models are what was trained: codes and scales from their bytes, and answers from running them.

All of it works offline, on a bundle that someone else made. Real rows come from the caller, or from the shipped data
set that the build used; a bundle of other data has its golden samples, which are held-out texts without their labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgedistill import catalog
from edgedistill.data import load_rows, make_splits
from edgedistill.data.sources import is_builtin
from edgedistill.data.tokenizer import parse_tokenizer
from edgedistill.errors import DataError, SpecError, VerificationError, did_you_mean
from edgedistill.pipeline import companions, executed, preparing, proofs
from edgedistill.pipeline.golden import GoldenSample
from edgedistill.pipeline.recheck import Bundle, check_files, golden_samples, inside, model_path, read_object
from edgedistill.specs import Artifact, Audit, Parity, Progress, Silent

# golden.json keeps six decimals; on the processor it was made on, the file answers the same to the last of them.
ROUNDING = 1e-6
GOLDEN = "golden samples"
# A row or so may fall on the other side on another processor; a claim that is off by more is not this file's.
CLAIM = 0.005


class Rows(NamedTuple):
    """What the files are run on. `labels` is None where nobody knows them; `whole`: these are the build's own rows."""

    source: str
    texts: Sequence[str]
    labels: Sequence[str] | None
    whole: bool


@dataclass(frozen=True)
class Proof:
    """One format's file: against the frozen student on the rows, its structure, and the largest value it computes.

    `gpu` is what the runtime's own analyzer says keeps it from the GPU; None where there is none, or it was not asked.
    """

    artifact: Artifact
    parity: Parity
    audit: Audit
    largest_value: float
    largest_at: str
    gpu: tuple[str, ...] | None = None

    @property
    def risks(self) -> tuple[str, ...]:
        """What the structure and the numbers say may go wrong on a device."""
        told = [*self.audit.risks, *(f"TensorFlow Lite's analyzer, GPU delegate: {line}" for line in self.gpu or ())]
        if self.largest_value > executed.FP16_LARGEST:
            told.append(
                f"{self.largest_at} reaches {self.largest_value:.3g}, and fp16 ends at {executed.FP16_LARGEST:g}"
            )
        return tuple(told)


@dataclass(frozen=True)
class Verified:
    """What was compared and found equal, in numbers; `labelled`: whether the task's metric could be computed. `notes`:
    what could not be compared, and why.
    """

    files: int
    tensors: int
    golden: int
    logits_max_difference: float
    rows: str
    labelled: bool
    proofs: tuple[Proof, ...]
    notes: tuple[str, ...] = ()


def verify(
    bundle: Bundle,
    *,
    tolerance: float = 0.0,
    data: str | None = None,
    most_rows: int | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Hashes, then codes and scales against the frozen student, then answers on real rows and on every golden sample.

    `tolerance` is the difference of a golden logit that is accepted, as a fraction of the sample's largest: another
    kind of processor rounds floats differently, and a value between two codes then takes the other one. `data` is a
    file of rows to run instead of the build's own; of them the first `most_rows`.

    Raises:
        VerificationError: with the first mismatch, and the layer at which it begins.
        SpecError: a file of the bundle is missing or damaged.
        DataError: `data` cannot be read, or has a label that the model does not know.
    """
    watch = progress or Silent()
    artifacts = bundle.manifest.artifacts
    proofs.require([artifact.format for artifact in artifacts])
    watch.begin("files")
    files = check_files(bundle)
    notes = companions.check(bundle)
    watch.end(f"{files} files have the manifest's hashes")
    from edgedistill.quant import FrozenStudent

    watch.begin("codes")
    frozen = FrozenStudent.load(bundle.folder / "frozen")
    _check_labels(bundle, frozen)
    tokenizer = read_tokenizer(inside(bundle.folder, "tokenizer.json"))
    preparing.check(bundle, read_object(bundle.folder, "tokenizer.json"), frozen.task.get("tokenizer_json"))
    for artifact in artifacts:
        path = model_path(bundle, artifact)
        catalog.load_plugin("exporters", artifact.format).verify(frozen, path)
        executed.check_lengths(artifact.format, frozen, path, bundle.profile.student.buckets)
    watch.end(f"codes and scales of {len(frozen.quantized)} tensors equal the frozen student's")
    samples = golden_samples(bundle)
    _check_ids(bundle, frozen, tokenizer, samples)
    rows = _rows(bundle, frozen, samples, data, most_rows)
    found = [_prove(bundle, frozen, tokenizer, rows, artifact, watch) for artifact in artifacts]
    watch.begin("golden", len(samples) * len(artifacts), "sample")
    worst = max(_replay_all(bundle, frozen, samples, artifact, tolerance, watch) for artifact in artifacts)
    count = len(samples) * len(artifacts)
    watch.end(f"{count} samples replayed through the files")
    labelled = rows.labels is not None
    return Verified(files, len(frozen.quantized), count, worst, rows.source, labelled, tuple(found), notes)


def _check_labels(bundle: Bundle, frozen: Any) -> None:
    try:
        labels = inside(bundle.folder, "labels.txt").read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise SpecError(f"{bundle.folder / 'labels.txt'}: not UTF-8 text.") from None
    if labels != frozen.task.get("labels") or labels != bundle.manifest.data.get("labels"):
        raise VerificationError(f"{bundle.folder / 'labels.txt'}: differs from the labels of the frozen student.")


def read_tokenizer(path: Path) -> Any:
    """The tokenizer of a tokenizer.json.

    Raises:
        SpecError: the file is missing, or is none.
    """
    try:
        return parse_tokenizer(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # text that is not UTF-8 is a ValueError too
        raise SpecError(f"{path}: not a tokenizer: {error}.") from None


def _check_ids(bundle: Bundle, frozen: Any, tokenizer: Any, samples: tuple[GoldenSample, ...]) -> None:
    """The bundle's tokenizer still makes of each text the ids that the file was run on."""
    task = catalog.load_plugin("tasks", bundle.profile.task)
    found = task.encode(tokenizer, [sample.text for sample in samples], frozen.config["max_length"])
    for sample, ids in zip(samples, found, strict=True):
        if list(ids) != list(sample.input_ids):
            raise VerificationError(f"golden sample {sample.id}: the tokenizer makes other ids of its text.")


def _rows(
    bundle: Bundle, frozen: Any, samples: tuple[GoldenSample, ...], data: str | None, most_rows: int | None
) -> Rows:
    labels, spec = frozen.task["labels"], bundle.profile.data
    if data is not None:
        found = load_rows(data, Path())
        odd = next((row.label for row in found if row.label not in labels), None)
        if odd is not None:
            raise DataError(f"{data}: label {odd!r} is none of the model's{did_you_mean(str(odd), labels)}")
        return Rows(data, [row.text for row in found][:most_rows], [str(r.label) for r in found][:most_rows], False)
    if is_builtin(spec.train) and (spec.held_out is None or is_builtin(spec.held_out)):
        # texts made by augmentation change no held-out row
        splits = make_splits(spec.model_copy(update={"transfer_factor": 0}), bundle.profile.seed, Path())
        counts = bundle.manifest.data.get("rows")
        same = isinstance(counts, dict) and counts.get("held_out") == len(splits.held_out)
        if same and list(splits.labels) == labels:
            chosen = splits.held_out[:most_rows]
            whole = len(chosen) == len(splits.held_out)
            source = f"held-out rows of {spec.train}"
            return Rows(source, [row.text for row in chosen], [str(row.label) for row in chosen], whole)
    return Rows(GOLDEN, [sample.text for sample in samples], None, False)


def _prove(bundle: Bundle, frozen: Any, tokenizer: Any, rows: Rows, artifact: Artifact, watch: Progress) -> Proof:
    """Run a file on the rows beside the frozen student, and look at its structure."""
    from edgedistill import evaluate
    from edgedistill.tasks import text_classification as task

    name, path, names = artifact.format, model_path(bundle, artifact), frozen.task["labels"]
    sequences = task.encode(tokenizer, rows.texts, frozen.config["max_length"])
    watch.begin(f"run:{name}", 2 * len(sequences), "row")
    seen = executed.answers(name, frozen, path, sequences, task.pad_id(tokenizer), watch)
    truth = task.class_ids(rows.labels or [None] * len(sequences), names)
    exporter = catalog.load_plugin("exporters", name)
    difference = evaluate.code_difference(frozen, exporter.read_back(path))
    parity = evaluate.parity(seen.reference, seen.file, truth, len(frozen.quantized), difference)
    parity = executed.check(name, frozen, path, seen, parity, bundle.profile.quality.argmax_agreement_min)
    executed.every_signature(name, frozen, path)
    _check_claims(bundle, rows, artifact, parity)
    largest, where = executed.largest_value(name, path, sequences)
    watch.end(f"{parity.rows} rows, argmax agreement {parity.argmax_agreement:.4f}")
    ask = getattr(exporter, "gpu_verdict", None)
    return Proof(artifact, parity, exporter.audit(path), largest, where, ask(path) if ask else None)


def _check_claims(bundle: Bundle, rows: Rows, artifact: Artifact, parity: Parity) -> None:
    """What the manifest says of the file's accuracy, and what its profile asks of its answers."""
    claimed, wanted = bundle.manifest.parity.get(artifact.format), bundle.profile.quality.argmax_agreement_min
    where = bundle.folder / "manifest.json"
    if claimed is None:
        raise SpecError(f"{where}: parity of format {artifact.format!r} is missing.")
    if rows.whole and abs(claimed.accuracy_file - parity.accuracy_file) * parity.rows > max(1, CLAIM * parity.rows):
        raise VerificationError(
            f"{where}: says an accuracy of {claimed.accuracy_file:.2%} of {artifact.path}, which has "
            f"{parity.accuracy_file:.2%} on the {parity.rows} {rows.source}."
        )
    if parity.argmax_agreement < wanted:
        first = parity.first_divergence or "no layer alone"
        raise VerificationError(
            f"{artifact.path}: answers {parity.argmax_agreement:.2%} of {parity.rows} rows as the frozen student does, "
            f"wanted {wanted:.2%}. It first differs at {first}."
        )


def _replay_all(
    bundle: Bundle,
    frozen: Any,
    samples: tuple[GoldenSample, ...],
    artifact: Artifact,
    tolerance: float,
    watch: Progress,
) -> float:
    """Every golden sample through one file; the largest difference of a logit."""
    path = model_path(bundle, artifact)
    runner, worst = catalog.load_plugin("exporters", artifact.format).load(path), 0.0
    for sample in samples:
        try:
            worst = max(worst, _replay(bundle, frozen, runner, sample, artifact.format, tolerance))
        except VerificationError as error:
            first = executed.first_divergence(artifact.format, frozen, path, [sample.input_ids])
            told = f"The file first differs from the frozen student at {first}." if first else (
                "Each layer of the file computes what the frozen student's does: golden.json is not of this file, or "
                "of another kind of processor."
            )  # fmt: skip
            raise VerificationError(f"{error} {told}") from None
        watch.advance(1)
    return worst


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
