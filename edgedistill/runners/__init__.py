"""Runners: one file per way to run a model file and time it, named as targets write it in `runner`.

A runner file defines `measure_many(jobs, *, launches, progress) -> dict[str, Measurement]` (see `Runner`). It takes its
jobs interleaved, one fresh process per launch: on a noisy machine the noise lies between launches, so two files
that are to be compared must share the same minutes. A runner only observes; verdicts are the gate's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgedistill.specs import Measurement
from edgedistill.specs.progress import Progress


@dataclass(frozen=True)
class Job:
    """One file to time on real samples.

    `inputs` maps the name of each of the signature's inputs to its samples, one (nested) sequence of numbers per
    sample; every input has the same number of them, and they are cycled. Shape and dtype are the file's: a sample may
    leave out the batch axis, but a number that the file's dtype cannot hold is an error. `threads` is a count.
    """

    model: Path
    signature: str
    inputs: Mapping[str, Sequence[Any]]
    threads: int = 1


class Runner(Protocol):
    """What a runner file offers."""

    def measure_many(self, jobs: Mapping[str, Job], *, launches: int, progress: Progress) -> dict[str, Measurement]:
        """Time every job in `launches` fresh processes each; calls `progress.advance(1)` once per launch.

        Raises:
            SpecError: a job is wrong (file, signature, inputs).
            StageError: the file cannot be loaded or run.
            InfrastructureError: the device did not answer; says nothing about the file.
        """
