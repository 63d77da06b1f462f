"""A student that somebody trained with torchao's quantization-aware training, as files: the codes that torchao trained.

Nothing is trained here. The checkpoint's codes and scales go into a frozen student, a line for each tensor says what
could not be held exactly, and the formats' own exporters write, read back and execute the files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill import catalog
from edgedistill.data import load_rows
from edgedistill.errors import DataError, SpecError, did_you_mean
from edgedistill.pipeline import executed, proofs, replay
from edgedistill.plan.storable import check_family, check_stored, written
from edgedistill.specs import Artifact, Checkpoint, Parity, PerGroup, Progress, Silent, WeightGrid
from edgedistill.store import bytes_of, digest_of, storage_errors, write_json, writing


@dataclass(frozen=True)
class Converted:
    """The files that were written; of each tensor what moved; of each format how it answers, where rows were given."""

    folder: Path
    artifacts: tuple[Artifact, ...]
    moved: tuple[Any, ...]
    parity: Mapping[str, Parity]


def convert(
    about: Checkpoint,
    base: Path,
    formats: Sequence[str],
    out: Path,
    data: str | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write `out`: the formats' files, the frozen student, tokenizer, labels and conversion.json.

    With `data`, rows with labels, every file is also run on them beside the frozen student.

    Raises:
        SpecError: the checkpoint is not what `about` says, a format cannot hold it, or `out` exists.
        DataError: the rows cannot be read, or have a label that the student has not.
        StageError, VerificationError: a format cannot write the student, or its file is not the student.
    """
    watch = progress or Silent()
    if out.exists():
        raise SpecError(f"{out}: exists. Choose another --out, or remove it yourself.")
    proofs.require(formats)
    if about.family not in catalog.plugins("students"):
        raise SpecError(f"family = {about.family!r}{did_you_mean(about.family, catalog.plugins('students'))}")
    where, told = f"checkpoint {about.weights}", " Its codes were trained for their grid: train it with that scheme."
    family = check_family(formats, about.family, where)
    check_stored(formats, family, about.scheme, where, done=told, others=written(family, [about.config]))
    watch.begin("freeze")
    words, frozen, moved = _frozen(about, base)
    check_stored(formats, family, about.scheme, where, frozen.tensors, told)
    watch.end(f"{sum(item.exact for item in moved)} of {len(moved)} tensors held exactly")
    draft = out.with_name(f".{out.name}.draft")
    with writing(out):
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "frozen").mkdir(parents=True)
    with storage_errors(out):
        try:
            frozen.save(draft / "frozen")
            write_json(draft / "tokenizer.json", words)
            (draft / "labels.txt").write_text("".join(f"{label}\n" for label in about.labels), encoding="utf-8")
            artifacts = tuple(export(name, frozen, about.buckets, draft, watch) for name in formats)
            parity = {} if data is None else {name: _run(name, frozen, draft, data, watch) for name in formats}
            write_json(draft / "conversion.json", {
                "checkpoint": about.model_dump(mode="json"),
                "tensors": [str(item) for item in moved],
                "artifacts": [item.model_dump(mode="json") for item in artifacts],
                "parity": {name: item.model_dump(mode="json") for name, item in parity.items()},
            })  # fmt: skip
            draft.rename(out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return Converted(out, artifacts, moved, parity)


def _frozen(about: Checkpoint, base: Path) -> tuple[Any, Any, tuple[Any, ...]]:
    """The tokenizer's JSON, the frozen student, and what moved."""
    from edgedistill.quant import torchao_checkpoint

    path = base / about.tokenizer
    pieces = replay.read_tokenizer(path).get_vocab_size()
    words = json.loads(path.read_text(encoding="utf-8"))
    family = catalog.load_plugin("students", about.family)
    sizes = {"vocabulary": pieces, "classes": len(about.labels), "max_length": about.buckets[-1], **about.config}
    config = family.Config.decode(sizes, "config")
    task = {"task": "text_classification", "labels": list(about.labels), "tokenizer_json": words}
    scheme, weights = about.scheme, base / about.weights
    found = torchao_checkpoint.from_safetensors(weights, about.family, config, scheme, task, _quantizers(about))
    return words, found.student, found.report


def _quantizers(about: Checkpoint) -> dict[Any, Any]:
    """Torchao's fake quantizer of each kind of tensor."""
    import torch
    from torchao.quantization.qat import IntxFakeQuantizeConfig

    scheme, learned = about.scheme, about.learned_scales
    grids = {"linear": scheme.weights, "convolution": scheme.weights, "head": scheme.head}

    def of(grid: WeightGrid) -> Any:
        dtype = getattr(torch, f"int{grid.bits}")  # int4 is unknown to torch's type stubs
        groups = isinstance(grid.granularity, PerGroup)
        kind = {"group_size": grid.granularity.size} if groups else {"granularity": "per_channel"}  # type: ignore[union-attr]
        precision = getattr(torch, about.scale_precision)
        more = {"is_dynamic": not learned, "range_learning": learned}
        return IntxFakeQuantizeConfig(dtype, **kind, scale_precision=precision, **more)

    every = {**grids, "embedding": scheme.embeddings}
    return {kind: of(grid) for kind, grid in every.items() if kind not in about.float_kinds}


def export(
    name: str, frozen: Any, buckets: Sequence[int], out: Path, watch: Progress, precision: str = "float16"
) -> Artifact:
    """Write the file of a format into the folder `out`; only Core ML is asked for a `precision`."""
    asked = {"precision": precision} if name == "coreml" else {}
    watch.begin(f"export:{name}")
    exporter, path = catalog.load_plugin("exporters", name), out / proofs.model_name(name)
    exporter.export(frozen, buckets, path, **asked)
    size_mb = bytes_of(path) / 1e6
    watch.end(f"{size_mb:.3f} MB")
    return Artifact(
        path=path.name,
        format=name,
        sha256=digest_of(path),
        size_mb=size_mb,
        scheme=frozen.scheme,
        audit=exporter.audit(path),
    )


def _run(name: str, frozen: Any, out: Path, data: str, watch: Progress) -> Parity:
    from edgedistill import evaluate
    from edgedistill.tasks import text_classification as task

    rows, labels, path = load_rows(data, Path()), frozen.task["labels"], out / proofs.model_name(name)
    odd = next((row.label for row in rows if row.label not in labels), None)
    if odd is not None:
        raise DataError(f"{data}: label {odd!r} is none of the checkpoint's{did_you_mean(str(odd), labels)}")
    tokenizer = replay.read_tokenizer(out / "tokenizer.json")
    sequences = task.encode(tokenizer, [row.text for row in rows], frozen.config["max_length"])
    watch.begin(f"run:{name}", 2 * len(sequences), "row")
    seen = executed.answers(name, frozen, path, sequences, task.pad_id(tokenizer), watch)
    difference = evaluate.code_difference(frozen, catalog.load_plugin("exporters", name).read_back(path))
    truth = task.class_ids([row.label for row in rows], labels)
    parity = evaluate.parity(seen.reference, seen.file, truth, len(frozen.quantized), difference)
    parity = executed.check(name, frozen, path, seen, parity, 0.0)
    watch.end(f"{parity.rows} rows, accuracy {parity.accuracy_file:.2%}")
    return parity
