"""Formats: one module each, named as users write it. All translate one `FrozenStudent`; none quantizes anything.

A module defines what `Exporter` says. `export` must end with the file read back and executed, and must fail rather than
write a file that is not the student; `read_back` and `load` are what the pipeline's own verification builds on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgedistill.quant.frozen import FrozenStudent, QuantizedTensor
from edgedistill.specs.quant import QuantScheme


@runtime_checkable
class Runner(Protocol):
    """An exported file, loaded by the runtime that the format names."""

    @property
    def buckets(self) -> tuple[int, ...]:
        """The lengths, in tokens, that the file was exported for, ascending."""

    def signature(self, tokens: int) -> str:
        """Name of the entry point that runs a text of `tokens` tokens.

        Raises:
            DataError: if no bucket holds the text.
        """

    def __call__(
        self, input_ids: NDArray[np.integer[Any]], attention_mask: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[np.float32]:
        """Logits [classes] of one text of token ids [tokens]; the mask [tokens] is 1 at tokens, all 1 if left out.

        Raises:
            DataError: if no bucket holds the text.
            StageError: if the runtime fails.
        """


class Exporter(Protocol):
    """What a module of this folder defines."""

    SUFFIX: str
    """File suffix, with the dot."""
    REQUIRES: tuple[str, ...]
    """Importable names of the packages that export and execution need."""

    def check(self, scheme: QuantScheme) -> str | None:
        """None if the format holds the scheme exactly, else why it does not. Cheap: the planner asks."""

    def export(self, frozen: FrozenStudent, buckets: Sequence[int], out: Path) -> None:
        """Write the file `out` with one entry point per length bucket, verified.

        Raises:
            MissingDependency: if a package of `REQUIRES` is not installed.
            StageError: if the student cannot be written; VerificationError if the file is not the student.
        """

    def read_back(self, path: Path) -> dict[str, QuantizedTensor]:
        """Codes and scales by tensor name, from the file's own bytes.

        Raises:
            VerificationError: if they cannot be found or are stored in more than one version.
        """

    def verify(self, frozen: FrozenStudent, path: Path) -> None:
        """Compare the file with the student; the difference must be 0.

        Raises:
            VerificationError: naming the tensor that differs.
        """

    def load(self, path: Path, threads: int = 1) -> Runner:
        """Open the file for execution.

        Raises:
            MissingDependency: if the runtime is not installed.
            StageError: if the runtime refuses the file.
        """
