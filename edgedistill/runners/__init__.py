"""Runners: one file per way to run a model file and time it, named as targets write it in `runner`.

A runner file defines `measure_many(jobs, *, launches, timing, how, progress) -> dict[str, Measurement]` (see `Runner`).
It takes its jobs interleaved, one fresh process per launch: on a noisy machine the noise lies between launches, so two
files that are to be compared must share the same minutes. A runner only observes; verdicts are the gate's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgedistill.errors import SpecError
from edgedistill.specs import Measurement
from edgedistill.specs.progress import Progress

FORMATS = {
    ".tflite": "tflite", ".onnx": "onnx", ".gguf": "gguf", ".litertlm": "litertlm", ".mlpackage": "coreml",
}  # fmt: skip


UNFIT = ("record", "mark", "refuse")


@dataclass(frozen=True)
class Job:
    """One file to time on real samples.

    `inputs` maps the name of each of the signature's inputs to its samples, one (nested) sequence of numbers per
    sample; every input has the same number of them, and they are cycled. Shape and dtype are the file's: a sample may
    leave out the batch axis, but a number that the file's dtype cannot hold is an error. `threads` is a count.
    `expected` holds, per output and sample, what the file is to answer, flat; it is compared and never enforced.

    With `decode_tokens` the file is a decoder: a sample is then a prompt that is read and continued by so many tokens,
    its time is that until the first of them, and the tokens per second are told as well. Without inputs the prompt is
    made up, of `prompt_tokens` tokens.
    """

    model: Path
    signature: str
    inputs: Mapping[str, Sequence[Any]]
    threads: int = 1
    expected: Mapping[str, Sequence[Sequence[float]]] | None = None
    decode_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def format(self) -> str:
        """The format, by the file's ending; empty for one that nothing here runs."""
        return FORMATS.get(self.model.suffix, "")


@dataclass(frozen=True)
class Timing:
    """How long one launch lasts; the defaults take about 1.5 s. Counts are inferences, `_s` are seconds.

    Warm-up and measurement each go on until both their count and their time are reached; `runs_max` and `cap_s` end
    either early. `timeout_s` is for the whole process, import and load included. `sustained_s` adds a long run without
    a pause after each launch's measurement; its time is not part of `timeout_s`. On a device with an energy meter each
    launch also pauses for `energy_s` and runs for `energy_s`, with the meter read; 0: never.
    """

    warmup_runs: int = 3
    warmup_s: float = 0.2
    runs_min: int = 100
    time_s: float = 1.0
    runs_max: int = 5000
    cap_s: float = 10.0
    timeout_s: float = 60.0
    sustained_s: float = 0.0
    energy_s: float = 2.0

    def __post_init__(self) -> None:
        """Raises SpecError when a launch could end without a sample."""
        if not 1 <= self.runs_min <= self.runs_max or self.cap_s <= 0 or self.timeout_s <= 0 or self.sustained_s < 0:
            raise SpecError(
                f"timing needs 1 <= runs_min <= runs_max, cap_s > 0, timeout_s > 0 and sustained_s >= 0; got {self}"
            )


@dataclass(frozen=True)
class How:
    """How a device is driven; the host needs none of it but the mask.

    `where` is the serial number or `user@host`. `python` is the interpreter there. `tool` is a benchmark program to use
    in its place: a file here, which is pushed, or `device:/its/path`. `core_mask` is hexadecimal, as for `taskset`.
    A device that is too hot is waited for, `cool_down_s` at most, and a launch beside other work is repeated;
    `battery_min_percent` is what it must have left. `unfit` says what becomes of a device that is not fit then:
    "record" measures and notes how it was, "mark" measures and marks the figures, which the gate then does not count,
    "refuse" ends. Empty: "record" on the host, which others share, "mark" elsewhere. A lost line is waited for
    `reconnect_s` each time; 0: a lost line ends the session.
    """

    where: str = ""
    python: str = "python3"
    tool: str = ""
    core_mask: str = ""
    cool_down_s: float = 120.0
    battery_min_percent: float = 20.0
    unfit: str = ""
    reconnect_s: float = 30.0

    def __post_init__(self) -> None:
        """Raises SpecError for a mask that is not one, or another word for `unfit`."""
        if self.unfit not in ("", *UNFIT):
            raise SpecError(f"unfit = {self.unfit!r}: one of {', '.join(UNFIT)}.")
        try:
            empty = bool(self.core_mask) and int(self.core_mask, 16) <= 0
        except ValueError:
            empty = True
        if empty:
            raise SpecError(f"core mask {self.core_mask!r}: needs a hexadecimal number, e.g. f0 for cores 4 to 7")


class Runner(Protocol):
    """What a runner file offers."""

    def measure_many(
        self,
        jobs: Mapping[str, Job],
        *,
        launches: int,
        timing: Timing | None = None,
        how: How | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Measurement]:
        """Time every job in `launches` fresh processes each; calls `progress.advance(1)` once per launch.

        Raises:
            SpecError: a job is wrong (file, signature, inputs), or the device was named wrongly.
            StageError: the file cannot be loaded or run.
            MissingDependency: the runtime is not on the device.
            InfrastructureError: the device did not answer; says nothing about the file.
        """
