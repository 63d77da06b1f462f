"""Times .tflite files on this machine's CPU: a fresh process per launch, launches of several files interleaved.

A figure from here is the host's and never a phone's; only a target whose runner is `host` is gated on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgedistill.errors import InfrastructureError, MissingDependency, SpecError, StageError
from edgedistill.runners import Job
from edgedistill.specs import Measurement, Progress, Provenance, Silent

CHILD = Path(__file__).with_name("_host_child.py")
JOB_IS_WRONG = 64  # the child's constant; importing it here would load the runtime into this process
# Ended from outside: the machine or a person stopped it, not the model.
OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# One thread for libraries that the model does not use (less memory), and no log lines about delegates.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
FIELDS = frozenset(
    ("nonce", "runtime", "load_ns", "first_ns", "samples_ns", "baseline_kb", "peak_kb", "involuntary_switches")
)


@dataclass(frozen=True)
class Timing:
    """How long one launch lasts; the defaults take about 1.5 s. Counts are inferences, `_s` are seconds.

    Warm-up and measurement each go on until both their count and their time are reached; `runs_max` and `cap_s` end
    either early. `timeout_s` is for the whole process, import and load included.
    """

    warmup_runs: int = 3
    warmup_s: float = 0.2
    runs_min: int = 100
    time_s: float = 1.0
    runs_max: int = 5000
    cap_s: float = 10.0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Raises SpecError when a launch could end without a sample."""
        if not 1 <= self.runs_min <= self.runs_max or self.cap_s <= 0 or self.timeout_s <= 0:
            raise SpecError(f"timing needs 1 <= runs_min <= runs_max, cap_s > 0 and timeout_s > 0; got {self}")


@dataclass(frozen=True)
class Launch:
    """What one process saw; `load_average` is the machine's just before it started."""

    answer: dict[str, Any]
    load_average: float


def measure(
    model: Path,
    *,
    signature: str,
    inputs: Mapping[str, Sequence[Any]],
    threads: int = 1,
    launches: int = 3,
    timing: Timing | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Time one signature of one file; see `measure_many` for what is raised and `Job` for the inputs."""
    job = Job(model=model, signature=signature, inputs=inputs, threads=threads)
    return measure_many({"model": job}, launches=launches, timing=timing, progress=progress)["model"]


def measure_many(
    jobs: Mapping[str, Job], *, launches: int = 3, timing: Timing | None = None, progress: Progress | None = None
) -> dict[str, Measurement]:
    """Time every job in `launches` fresh processes, interleaved A, B, C, B, C, A, ... so that all share the noise.

    Raises:
        SpecError: no launches, no samples, or a file, signature or input that does not exist or fit.
        StageError: the runtime cannot load or run the file, or crashes on it.
        InfrastructureError: a launch ran out of time, was killed from outside, or left no complete answer.
        MissingDependency: the runtime is not installed.
    """
    timing, progress = timing or Timing(), progress or Silent()
    if find_spec("ai_edge_litert") is None:
        raise MissingDependency("running a .tflite file needs ai-edge-litert: pip install ai-edge-litert")
    if launches < 1:
        raise SpecError(f"launches must be at least 1, got {launches}")
    for name, job in jobs.items():
        _check(name, job)
    hashes = {name: _sha256(job.model) for name, job in jobs.items()}
    seen: dict[str, list[Launch]] = {name: [] for name in jobs}
    names = list(jobs)
    for turn in range(launches):
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            seen[name].append(_launch(name, jobs[name], timing))
            progress.advance(1)
    return {name: _summarize(jobs[name], hashes[name], seen[name]) for name in names}


def _check(name: str, job: Job) -> None:
    if not job.model.is_file():
        raise SpecError(f"{name}: no such file: {job.model}")
    if job.threads < 1:
        raise SpecError(f"{name}: threads must be at least 1, got {job.threads}")
    counts = {key: len(samples) for key, samples in job.inputs.items()}
    if not counts or min(counts.values()) < 1 or len(set(counts.values())) != 1:
        raise SpecError(f"{name}: every input needs the same number of samples, at least 1; got {counts}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _launch(name: str, job: Job, timing: Timing) -> Launch:
    """Run one child process and validate its answer."""
    nonce = secrets.token_hex(16)
    asked = {
        **asdict(timing),
        "nonce": nonce,
        "model": str(job.model.resolve()),
        "signature": job.signature,
        "threads": job.threads,
        "inputs": {key: list(samples) for key, samples in job.inputs.items()},
    }
    load_average = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
            question, answer = Path(folder, "job.json"), Path(folder, "answer.json")
            question.write_text(json.dumps(asked), encoding="utf-8")
            ended = subprocess.run(
                [sys.executable, "-P", str(CHILD), str(question), str(answer)],
                env={**os.environ, **QUIET},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=timing.timeout_s,
                check=False,
            )
            _check_end(name, job, ended)
            text = answer.read_text(encoding="utf-8") if answer.exists() else ""
    except subprocess.TimeoutExpired as error:
        tail = _last_line(error.stderr)
        raise InfrastructureError(
            f"{name}: a launch of {job.model.name} did not end within {timing.timeout_s:g} s{tail}"
        ) from None
    except OSError as error:
        raise InfrastructureError(f"{name}: cannot start a measuring process: {error}") from None
    return Launch(_decode(name, text, nonce), load_average)


def _check_end(name: str, job: Job, ended: subprocess.CompletedProcess[bytes]) -> None:
    """Raise the error that the child's exit status stands for."""
    tail = _last_line(ended.stderr)
    if ended.returncode == JOB_IS_WRONG:
        raise SpecError(f"{name}: {job.model.name}{tail}")
    if ended.returncode < 0:
        number = -ended.returncode
        word = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        if number in OUTSIDE:
            raise InfrastructureError(f"{name}: the measuring process was killed ({word}); out of memory?")
        raise StageError(f"{name}: the runtime crashed on {job.model.name} ({word}){tail}")
    if ended.returncode:
        raise StageError(f"{name}: the runtime cannot load or run {job.model.name} [{job.signature}]{tail}")


def _last_line(stderr: bytes | None) -> str:
    """`: LINE`, the child's last word; the runtime's own chatter is skipped."""
    lines = [line.strip() for line in (stderr or b"").decode("utf-8", "replace").splitlines()]
    told = [line for line in lines if line and not line.startswith(("INFO:", "I0000", "W0000"))]
    return f": {told[-1][:500]}" if told else ""


def _decode(name: str, text: str, nonce: str) -> dict[str, Any]:
    """The child's answer; an answer that is not whole, or not to this question, is no answer."""
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        raise InfrastructureError(f"{name}: the measuring process ended without an answer") from None
    if not isinstance(answer, dict) or not answer.keys() >= FIELDS or not answer["samples_ns"]:
        raise InfrastructureError(f"{name}: the measuring process left an incomplete answer")
    if answer["nonce"] != nonce:
        raise InfrastructureError(f"{name}: the answer belongs to another launch")
    return answer


def _summarize(job: Job, sha256: str, launches: Sequence[Launch]) -> Measurement:
    answers = [launch.answer for launch in launches]
    samples = [[nanoseconds / 1e6 for nanoseconds in answer["samples_ns"]] for answer in answers]
    highest = max(answers, key=lambda answer: int(answer["peak_kb"]))
    return Measurement(
        artifact_sha256=sha256,
        provenance=Provenance.MEASURED,
        device=f"host: {_cpu_model()}",
        runtime=str(answers[0]["runtime"]),
        signature=job.signature,
        threads=job.threads,
        samples_ms=tuple(value for launch in samples for value in launch),
        launch_counts=tuple(len(launch) for launch in samples),
        launch_medians_ms=tuple(statistics.median(launch) for launch in samples),
        first_inference_ms=statistics.median(answer["first_ns"] / 1e6 for answer in answers),
        load_ms=statistics.median(answer["load_ns"] / 1e6 for answer in answers),
        peak_memory_mb=highest["peak_kb"] * 1024 / 1e6,
        baseline_memory_mb=highest["baseline_kb"] * 1024 / 1e6,
        context=_context(launches),
    )


def _context(launches: Sequence[Launch]) -> dict[str, str | float]:
    """The circumstances that shape a timing, so that a reader can judge it."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": _cpu_model(),
        "cores": float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "governor": governor.read_text(encoding="ascii").strip() if os.access(governor, os.R_OK) else "not readable",
        "load_average_max": max(launch.load_average for launch in launches),
        "involuntary_switches": float(sum(launch.answer["involuntary_switches"] for launch in launches)),
        "launches": float(len(launches)),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware"))]
    return next(iter(names), platform.processor() or platform.machine())
