"""One model's file, of no bundle, held against the frozen student that it should be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgedistill import catalog
from edgedistill.errors import SpecError, VerificationError
from edgedistill.pipeline import proofs
from edgedistill.pipeline.recheck import refuse_foreign
from edgedistill.runners import FORMATS
from edgedistill.specs import Audit
from edgedistill.store import bytes_of

RUN = 4  # random inputs of each entry point
LENGTH = 16  # of those that take any length


@dataclass(frozen=True)
class Single:
    """What was compared and found equal: `tensors` with their codes and scales, and each layer of `runs` runs."""

    format: str
    size_mb: float
    tensors: int
    entry_points: tuple[str, ...]
    runs: int
    audit: Audit


def verify_file(path: Path, student: Path | None) -> Single:
    """The file's codes, scales and float tensors, and every layer of it on random inputs, against the student that is
    saved in the folder `student`.

    Raises:
        SpecError: no format has such a file, or `student` is None or no student.
        ForeignFile: the file is damaged, or no file of its format.
        VerificationError: naming what differs, or the first layer that computes something else.
        MissingDependency, StageError: as the format.
    """
    name = FORMATS.get(path.suffix)
    if name is None:
        raise SpecError(f"{path}: is a file of no format known here; those are {', '.join(FORMATS)}. Or give a bundle.")
    proofs.require([name])
    refuse_foreign(name, path)
    if student is None:
        raise SpecError(
            f"{path}: is a file alone. Say what it should be: --student FOLDER, the `frozen` beside what `build` or "
            "`convert` wrote; or give the bundle."
        )
    import numpy as np

    from edgedistill.quant import FrozenStudent

    frozen, exporter = FrozenStudent.load(student), catalog.load_plugin("exporters", name)
    exporter.verify(frozen, path)
    random, runs = np.random.default_rng(0), 0
    runner = exporter.load(path)
    # a decoder's text is read token by token: what reads a prompt in pieces is asked apart
    signatures = {**runner.signatures, **getattr(runner, "entry_points", {})}
    length = min(LENGTH, int(frozen.config.get("max_length", LENGTH)))
    for signature in signatures.values():
        sized = tuple(
            port._replace(shape=tuple(length if size < 0 else size for size in port.shape)) for port in signature.inputs
        )
        for _ in range(RUN):
            feeds = frozen.sample(signature._replace(inputs=sized), random)
            told = exporter.first_divergence(frozen, path, feeds)
            if told is not None:
                raise VerificationError(
                    f"{path}: {signature.name} does not compute the student of {student}. It first differs at {told}."
                )
            runs += 1
    return Single(
        name, bytes_of(path) / 1e6, len(frozen.quantized), tuple(signatures), runs, exporter.audit(path)
    )  # fmt: skip
