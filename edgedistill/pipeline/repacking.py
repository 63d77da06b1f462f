"""The student of a finished bundle as other files: a format more, or a Core ML package of another precision."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgedistill.errors import SpecError
from edgedistill.pipeline import conversion, proofs
from edgedistill.pipeline.recheck import inside, open_bundle, read_json
from edgedistill.plan.storable import check_family, check_stored
from edgedistill.specs import Artifact, Progress
from edgedistill.store import storage_errors


def repack(folder: Path, formats: Sequence[str], out: Path, precision: str, progress: Progress) -> list[Artifact]:
    """Write `out`: a file of each format, of the bundle's own codes, read back and executed by its exporter.

    Raises:
        SpecError: `folder` is no bundle, a format cannot hold its student, or `out` exists.
        StageError, VerificationError: a format cannot write the student, or its file is not the student.
    """
    bundle = open_bundle(folder)
    if out.exists():
        raise SpecError(f"{out}: exists. Choose another --out, or remove it yourself.")
    proofs.require(formats)
    from edgedistill import quant

    for name in ("frozen/student.json", "frozen/student.safetensors"):
        inside(folder, name)
    student = quant.FrozenStudent.load(folder / "frozen")
    family = check_family(formats, student.family, str(folder))
    told = " Its codes were trained for their grid: build again with that scheme."
    check_stored(formats, family, student.scheme, str(folder), student.tensors, told)
    words = {"tokenizer_json": read_json(folder, "tokenizer.json")}
    student = dataclasses.replace(student, task=student.task | words)
    draft, buckets = out.with_name(f".{out.name}.draft"), bundle.profile.student.buckets
    with storage_errors(out):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            found = [conversion.export(name, student, buckets, draft, progress, precision) for name in formats]
            draft.rename(out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return found
