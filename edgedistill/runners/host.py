"""Times .tflite, .onnx, .gguf and .litertlm files on this machine's CPU: a fresh process per launch, interleaved.

A figure from here is the host's and never a phone's; only a target whose runner is `host` is gated on it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgedistill.errors import InfrastructureError, MissingDependency, SpecError, StageError
from edgedistill.runners import How, Job
from edgedistill.runners import Timing as Timing
from edgedistill.runners._fitness import disturbed
from edgedistill.runners._launches import (
    JOB_IS_WRONG,
    PACKAGE_IS_MISSING,
    Seen,
    check_jobs,
    decode,
    disturbance,
    interleaved,
    last_line,
    pack_program,
    question,
    summarize,
)
from edgedistill.specs import Conditions, Fingerprint, Measurement, Progress, Silent

# Ended from outside: the machine or a person stopped it, not the model.
OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# One thread for libraries that the model does not use (less memory), and no log lines about delegates.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
NEEDS = {
    "tflite": ("ai_edge_litert", "ai-edge-litert"),
    "onnx": ("onnxruntime", "'edgedistill[onnx]'"),
    "gguf": ("llama_cpp", "'edgedistill[gguf]' (compiles for minutes)"),
    "litertlm": ("litert_lm", "'edgedistill[litertlm]'"),
}
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


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
    jobs: Mapping[str, Job],
    *,
    launches: int = 3,
    timing: Timing | None = None,
    how: How | None = None,
    progress: Progress | None = None,
) -> dict[str, Measurement]:
    """Time every job in `launches` fresh processes, interleaved A, B, C, B, C, A, ... so that all share the noise.

    Raises:
        SpecError: no launches, no samples, or a file, signature or input that does not exist or fit.
        StageError: the runtime cannot load or run the file, or crashes on it.
        InfrastructureError: a launch ran out of time, was killed from outside, or left no complete answer.
        MissingDependency: the runtime is not installed.
    """
    timing, how = timing or Timing(), how or How()
    how = replace(how, unfit=how.unfit or "record")  # others share a host: its noise is in the intervals
    check_jobs(jobs, launches, tuple(NEEDS), "host")
    for name in sorted({job.format for job in jobs.values()}):
        package, install = NEEDS[name]
        if find_spec(package) is None:
            raise MissingDependency(f"running a .{name} file needs {package}: pip install {install}")

    def run(name: str, job: Job, turn: int) -> Seen:
        return _launch(name, job, timing, how, first=turn == 0, last=turn == launches - 1)

    seen = interleaved(jobs, launches, run, progress or Silent())
    return {
        name: summarize(job, fingerprint(job.threads, how.core_mask), seen[name], _context(seen[name]))
        for name, job in jobs.items()
    }


def fingerprint(threads: int, core_mask: str = "") -> Fingerprint:
    """This machine; the runtime is filled in by what ran."""
    identity = Path("/etc/machine-id")
    told = identity.read_text(encoding="ascii").strip() if os.access(identity, os.R_OK) else ""
    return Fingerprint(
        runner="host",
        device_id=hashlib.sha256(f"{platform.node()} {told}".encode()).hexdigest(),
        model=platform.machine(),
        os_build=platform.platform(),
        cpu=cpu_model(),
        machine=platform.machine(),
        runtime="",
        runtime_version="",
        threads=threads,
        core_mask=core_mask,
    )


def conditions() -> Conditions:
    """This machine now, as far as it says."""
    governor = GOVERNOR.read_text(encoding="ascii").strip() if os.access(GOVERNOR, os.R_OK) else None
    return Conditions(governor=governor, load_average=os.getloadavg()[0])


def _launch(name: str, job: Job, timing: Timing, how: How, *, first: bool, last: bool) -> Seen:
    """Run one process of the program and validate its answer."""
    nonce = secrets.token_hex(16)
    before = conditions()
    limit_s = timing.timeout_s + (timing.sustained_s if last else 0.0)
    try:
        with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
            asked, answer = Path(folder, "job.json"), Path(folder, "answer.json")
            told = question(job, str(job.model.resolve()), nonce, timing, how, first=first, last=last)
            asked.write_text(told, encoding="utf-8")
            ended = subprocess.run(
                [sys.executable, "-P", "-m", "_program", str(asked), str(answer)],
                env={**os.environ, **QUIET, "PYTHONPATH": str(pack_program(Path(folder)))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=limit_s,
                check=False,
            )
            _check_end(name, job, ended)
            text = answer.read_text(encoding="utf-8") if answer.exists() else ""
    except subprocess.TimeoutExpired as error:
        tail = last_line(error.stderr)
        raise InfrastructureError(
            f"{name}: a launch of {job.model.name} did not end within {limit_s:g} s{tail}"
        ) from None
    except OSError as error:
        raise InfrastructureError(f"{name}: cannot start a measuring process: {error}") from None
    found = decode(name, text, nonce)
    unfit = () if how.unfit == "record" else tuple(disturbed(found))
    if unfit and how.unfit == "refuse":
        raise InfrastructureError(f"{name}: this machine is not fit to be measured: {'; '.join(unfit)}.")
    return Seen(found, before, conditions(), unfit=unfit)


def _check_end(name: str, job: Job, ended: subprocess.CompletedProcess[bytes]) -> None:
    """Raise the error that the program's exit status stands for."""
    tail = last_line(ended.stderr)
    if ended.returncode == JOB_IS_WRONG:
        raise SpecError(f"{name}: {job.model.name}{tail}")
    if ended.returncode == PACKAGE_IS_MISSING:
        raise MissingDependency(
            f"{name}: cannot run {job.model.name}{tail}. `edgedistill doctor` says what to install."
        )
    if ended.returncode < 0:
        number = -ended.returncode
        word = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        if number in OUTSIDE:
            raise InfrastructureError(f"{name}: the measuring process was killed ({word}); out of memory?")
        raise StageError(f"{name}: the runtime crashed on {job.model.name} ({word}){tail}")
    if ended.returncode:
        raise StageError(f"{name}: the runtime cannot load or run {job.model.name} [{job.signature}]{tail}")


def _context(seen: Sequence[Seen]) -> dict[str, str | float]:
    """The circumstances that shape a timing, so that a reader can judge it."""
    return {
        "cpu": cpu_model(),
        "cores": float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "governor": seen[0].before.governor or "not readable",
        "load_average_max": max(launch.before.load_average or 0.0 for launch in seen),
        "involuntary_switches": float(sum(launch.answer["involuntary_switches"] for launch in seen)),
        **disturbance(seen),
    }


def cpu_model() -> str:
    """The processor's name, as the kernel has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware"))]
    return next(iter(names), platform.processor() or platform.machine())
