"""Formats: one module each, named as users write it. All translate one `FrozenStudent`; none quantizes anything.

A module defines what `Exporter` says. `export` must end with the file read back and executed, and must fail rather than
write a file that is not the student; `read_back` and `load` are what the pipeline's own verification builds on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.stored import QuantizedTensor
from edgedistill.specs import Audit
from edgedistill.students import Signature


@runtime_checkable
class Runner(Protocol):
    """An exported file, loaded by the runtime that the format names."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The entry points by name, as the file itself describes them; a size of -1 may be anything."""

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs of one call, by name; `feeds` has the shapes and dtypes of the signature's inputs.

        Raises:
            DataError: if an input is missing or does not fit.
            StageError: if the runtime fails.
        """


class Exporter(Protocol):
    """What a module of this folder defines."""

    SUFFIX: str
    """Suffix of the file, or of the folder where a format is one, with the dot."""
    REQUIRES: tuple[str, ...]
    """Importable names of the packages that export and execution need."""
    EXTRA: str
    """The extra of this package that installs them, e.g. `edgedistill[coreml]`; empty if they always are."""
    HOLDS: Mapping[str, tuple[str, ...]]
    """What the format stores exactly (`QuantScheme.misfit`), as a literal: the planner reads it unimported."""
    EXCLUDES: Sequence[tuple[Mapping[str, str], str]]
    """Combinations of held values that the format still cannot hold, each with the reason. A literal; may be absent."""
    ROW_MULTIPLE: int
    """What the length of every stored matrix's rows has to be a multiple of. A literal; absent where it may be any."""
    INT4_ROW_MULTIPLE: int
    """The same of rows of int4 codes that the runtime computes with or looks up, not of those dequantized before."""
    PARITY: float
    """The median difference from the student that its runtime may show where activations are float, as a share of the
    largest output: rounding only, unless the runtime rounds activations by itself."""
    COMPUTES: Mapping[str, str]
    """For each kind of activations: "as_trained" where the runtime computes exactly that, "float" where it keeps
    activations float and only the weights are the trained ones. A literal too."""

    def export(self, frozen: FrozenStudent, buckets: Sequence[int], out: Path) -> None:
        """Write the file `out` with the student's signatures, verified; the same bytes in every process.

        Raises:
            MissingDependency: if a package of `REQUIRES` is not installed.
            StageError: if the student cannot be written; VerificationError if the file is not the student.
        """

    def read_back(self, path: Path) -> dict[str, QuantizedTensor]:
        """Codes and scales by tensor name, from the file's own bytes, by a reader of our own.

        Raises:
            VerificationError: if the file is foreign or damaged, or holds a weight in more than one version. Sizes in
                the file are checked against its length before anything is allocated.
        """

    def verify(self, frozen: FrozenStudent, path: Path) -> None:
        """Compare the file with the student, quantized tensors and float rest; the difference must be 0.

        Raises:
            VerificationError: naming the tensor that differs.
        """

    def audit(self, path: Path) -> Audit:
        """What the file's structure says about devices: the oldest runtime, its operators, risks.

        Raises:
            VerificationError: if the file is foreign or damaged.
        """

    def first_divergence(self, frozen: FrozenStudent, path: Path, feeds: Mapping[str, NDArray[Any]]) -> str | None:
        """Which layer of the file first differs from the student's for these inputs, and by how much; None: none does.

        "layers.0.up: max abs 0.41, expected <= 1e-05 (3 of 256 values)". `feeds` are those of one of the signatures.

        Raises:
            EdgedistillError: if the file cannot be read or run.
        """

    def largest_value(self, path: Path, feeds: Mapping[str, NDArray[Any]]) -> tuple[float, str]:
        """The largest finite size of any float that the file computes for these inputs, and where.

        fp16 holds up to 65504: what is larger overflows on a device that computes in it.

        Raises:
            EdgedistillError: if the file cannot be read or run.
        """

    def gpu_verdict(self, path: Path) -> tuple[str, ...] | None:
        """What the runtime's own analyzer says keeps the file from its GPU delegate; None: it was not asked.

        May be absent.

        Raises:
            EdgedistillError: who was asked cannot answer.
        """

    def load(self, path: Path, threads: int = 1) -> Runner:
        """Open the file for execution.

        Raises:
            MissingDependency: if the runtime is not installed.
            StageError: if the runtime refuses the file.
        """


def same_weights(path: Path, found: Mapping[str, QuantizedTensor], frozen: FrozenStudent) -> None:
    """Compare what `read_back` found with the student, number by number.

    Raises:
        VerificationError: naming the first tensor that differs, and how many of its codes or scales.
    """
    import numpy as np

    from edgedistill.errors import VerificationError

    if found.keys() != frozen.quantized.keys():
        odd = ", ".join(sorted(found.keys() ^ frozen.quantized.keys()))
        raise VerificationError(f"{path}: quantized weights of file and student differ: {odd}. Export it again.")
    for name, expected in frozen.quantized.items():
        for part, a, b in (("code", found[name].codes, expected.codes), ("scale", found[name].scales, expected.scales)):
            if a.shape != b.shape or not np.array_equal(a, b):
                count = int((a != b).sum()) if a.shape == b.shape else max(a.size, b.size)
                raise VerificationError(f"{path}: {count} of {b.size} {part}s of {name} are not the student's.")
