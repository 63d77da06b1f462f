"""A bundle's file, or a decoder's alone, timed where it is to run: here, on a phone or a board. Answers of a bundle's
golden samples are compared.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgedistill import catalog
from edgedistill.errors import ForeignFile, SpecError, StageError, VerificationError, did_you_mean
from edgedistill.pipeline.golden import GoldenSample
from edgedistill.pipeline.recheck import Bundle, check_files, golden_samples, model_path, refuse_foreign
from edgedistill.runners import How, Job, Timing
from edgedistill.specs import Artifact, Measurement, Progress, Silent, Target

# Longer than in a build, where the time is paid on every run.
BENCH = Timing(warmup_s=0.5, runs_min=200, time_s=2.0)
# On a device all is slower: a process has a minute to load, and a long model a minute to run.
ON_DEVICE = Timing(warmup_s=0.5, runs_min=30, time_s=2.0, cap_s=30.0, timeout_s=180.0)
# A text takes long, and its many tokens are many samples already.
TEXT = Timing(warmup_runs=1, warmup_s=0.2, runs_min=5, time_s=2.0, cap_s=60.0, timeout_s=600.0)
TEXT_FORMATS = ("gguf", "litertlm", "tflite")
ROUNDING = 1e-6  # golden.json keeps six decimals


@dataclass(frozen=True)
class Run:
    """Where and how long to time: `on` is `host`, `adb:SERIAL`, `ssh:USER@HOST` or another runner's name, with the
    device it is to use. `threads`: None for the target's. `timing`: None for what suits the place and the model.
    """

    on: str = "host"
    launches: int = 7
    threads: int | None = None
    how: How = field(default_factory=How)
    sustained_s: float = 0.0
    timing: Timing | None = None
    progress: Progress = field(default_factory=Silent)


def bench(bundle: Bundle, run: Run, format_name: str = "") -> dict[str, Measurement]:
    """Time each signature of the shipped file, or of the file of another format; nothing in the bundle is changed.

    Raises:
        VerificationError: the file is not the one that was built.
        SpecError: no such runner or format, or no golden sample fits.
        MissingDependency, StageError, InfrastructureError: as the runner says.
    """
    check_files(bundle)
    run = replace(run, how=of_target(run.how, run.on, bundle.target))
    return _timed(timing_jobs(bundle, run.threads, format_name), run, BENCH if run.on == "host" else ON_DEVICE)


def of_target(how: How, on: str, target: Target) -> How:
    """`how`, with the target's own `unfit` where none is given and `on` is such a device."""
    if how.unfit or target.unfit is None or on.partition(":")[0] != target.runner:
        return how
    return replace(how, unfit=target.unfit)


@dataclass(frozen=True)
class TextSize:
    """How long a text is timed: `prompt` tokens are read, and `answer` tokens made behind the first."""

    prompt: int = 128
    answer: int = 32

    @property
    def signature(self) -> str:
        """The name of such a text in a measurement."""
        return f"prompt_{self.prompt}_answer_{self.answer}"

    def job(self, path: Path, threads: int) -> Job:
        """A decoder's file that reads and makes such a text.

        Raises:
            SpecError: it is a file of another kind.
        """
        if path.suffix.lstrip(".") not in TEXT_FORMATS:
            raise SpecError(f"{path}: no file that makes text; those are {', '.join(f'.{n}' for n in TEXT_FORMATS)}.")
        return Job(path, self.signature, {}, threads, decode_tokens=self.answer, prompt_tokens=self.prompt)


def bench_text(path: Path, size: TextSize, run: Run) -> dict[str, Measurement]:
    """Time a decoder's file that belongs to no bundle: tokens per second, reading and writing. One thread by default.

    Raises:
        SpecError: no such runner, or the file is no decoder, or keeps fewer tokens.
        ForeignFile: the file is damaged, or not what its name says.
        MissingDependency, StageError, InfrastructureError: as the runner says.
    """
    return _timed({size.signature: size.job(path, run.threads or 1)}, run, TEXT)


def _timed(jobs: Mapping[str, Job], run: Run, timing: Timing) -> dict[str, Measurement]:
    kind, _, where = run.on.partition(":")
    known = catalog.plugins("runners")
    if kind not in known:
        raise SpecError(f"--on {run.on}: no such runner{did_you_mean(kind, known)}")
    run.progress.begin("bench", len(jobs) * run.launches, "launch")
    with telling_damage(jobs):
        found: dict[str, Measurement] = catalog.load_plugin("runners", kind).measure_many(
            jobs,
            launches=run.launches,
            timing=replace(run.timing or timing, sustained_s=run.sustained_s),
            how=replace(run.how, where=where),
            progress=run.progress,
        )
    run.progress.end(f"{len(jobs)} signatures, {run.launches} launches each")
    return found


@contextlib.contextmanager
def telling_damage(jobs: Mapping[str, Job]) -> Iterator[None]:
    """Where a runtime fails because a file is none of its format, say that.

    Not before: a runtime loads more than this package can read.

    Raises:
        ForeignFile: in place of the runner's StageError.
    """
    try:
        yield
    except StageError as error:
        for job in jobs.values():
            try:
                refuse_foreign(job.format, job.model)
            except ForeignFile as found:
                raise ForeignFile(f"{found} ({error})") from None
        raise


def check_outputs(found: Mapping[str, Measurement], tolerance: float) -> None:
    """Compare what the device answered with the golden answers; `tolerance` is a share of the largest of them.

    Raises:
        VerificationError: one differs by more.
    """
    for name, seen in found.items():
        if seen.outputs is None:
            continue
        allowed = ROUNDING + tolerance * seen.outputs.reference_max_abs
        if not seen.outputs.max_abs_difference <= allowed:
            raise VerificationError(
                f"{name}: on {seen.device} a logit differs by {seen.outputs.max_abs_difference:.3g} from golden.json, "
                f"allowed {allowed:.3g} ({seen.outputs.labels_agree} of {seen.outputs.samples} labels agree). "
                "The device's runtime computes something else: compare its version with the manifest's."
            )


def _artifact(bundle: Bundle, format_name: str) -> Artifact:
    files = {artifact.format: artifact for artifact in bundle.manifest.artifacts}
    if not format_name:
        return bundle.shipped
    if format_name not in files:
        raise SpecError(f"{bundle.folder}: has no {format_name} file{did_you_mean(format_name, files)}")
    return files[format_name]


def timing_jobs(bundle: Bundle, threads: int | None = None, format_name: str = "") -> dict[str, Job]:
    """What to time of the shipped file, by signature, the shortest text length first, on the golden samples that were
    answered through it, else on shorter ones, padded.

    Raises:
        SpecError: there is no file of this format, or no golden sample fits a signature.
    """
    artifact = _artifact(bundle, format_name)
    path, samples = model_path(bundle, artifact), golden_samples(bundle)
    told = sorted({item.answers[artifact.format].signature for item in samples})
    lengths: dict[str, int | None] = dict.fromkeys(told)
    if all(re.fullmatch(r"length_\d+", name) for name in told):
        lengths = {f"length_{length}": length for length in bundle.profile.student.buckets}
    jobs = {}
    for name, length in lengths.items():
        answered = [item for item in samples if item.answers[artifact.format].signature == name]
        fitting = answered or [item for item in samples if length and len(item.input_ids) <= length]
        if not fitting:
            continue
        expected = [item.answers[artifact.format].logits for item in fitting]
        jobs[name] = Job(
            path,
            name,
            _inputs(fitting, length),
            threads or bundle.target.threads,
            expected={"logits": expected} if answered else None,
        )
    if not jobs:
        raise SpecError(f"{bundle.folder / 'golden.json'}: no sample fits a signature of the model.")
    return jobs


def _inputs(samples: list[GoldenSample], length: int | None) -> dict[str, list[list[int]]]:
    """Ids and mask of each sample, padded to `length`; None: a file that takes any length."""
    sizes = [length or len(item.input_ids) for item in samples]
    return {
        "input_ids": [
            [*item.input_ids, *[0] * (size - len(item.input_ids))] for item, size in zip(samples, sizes, strict=True)
        ],
        "attention_mask": [
            [1] * len(item.input_ids) + [0] * (size - len(item.input_ids))
            for item, size in zip(samples, sizes, strict=True)
        ],
    }
