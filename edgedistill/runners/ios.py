"""Times .mlpackage files on an iPhone, from a Mac: `--on ios:NAME`. Elsewhere it refuses and says what to do."""

from __future__ import annotations

import hashlib
import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgedistill.errors import InfrastructureError, MissingDependency, SpecError, StageError
from edgedistill.runners import How, Job, Timing
from edgedistill.runners._launches import (
    JOB_IS_WRONG,
    PACKAGE_IS_MISSING,
    Seen,
    check_jobs,
    decode,
    interleaved,
    last_line,
    question,
    summarize,
)
from edgedistill.specs import Conditions, Fingerprint, Measurement, Progress, Silent

PROGRAM = Path(__file__).with_name("_ios_program.py")
DEVICE_IS_LOST = 66  # the program's
INSTALL_S = 600.0  # the first launch builds and installs the runner app
ELSEWHERE = (
    "--on ios: Core ML runs on Apple systems only, this is {system}. Copy the bundle to a Mac with Xcode and an iPhone "
    "in developer mode, install there (pip install 'edgedistill[coreml]'), set EDGEDISTILL_IOS_TEAM to your Apple "
    "development team's id, and run the same command."
)


def measure_many(
    jobs: Mapping[str, Job],
    *,
    launches: int = 3,
    timing: Timing | None = None,
    how: How | None = None,
    progress: Progress | None = None,
) -> dict[str, Measurement]:
    """Time every job in `launches` fresh loads of the model on the phone that `how.where` names; see `Runner`."""
    timing, how = timing or Timing(), how or How()
    check_jobs(jobs, launches, ("coreml",), "ios")
    if sys.platform != "darwin":
        raise MissingDependency(ELSEWHERE.format(system=sys.platform))
    if how.tool or how.core_mask:
        raise SpecError("--on ios: neither --tool nor --core-mask: Apple's tooling runs the model where it chooses.")

    def run(name: str, job: Job, turn: int) -> Seen:
        return _launch(name, job, timing, how, first=turn == 0, last=turn == launches - 1)

    seen = interleaved(jobs, launches, run, progress or Silent())
    return {name: summarize(job, fingerprint(job, seen[name][0].answer), seen[name], {}) for name, job in jobs.items()}


def fingerprint(job: Job, answer: Mapping[str, Any]) -> Fingerprint:
    """The phone, as the program's answer names it.

    Raises:
        InfrastructureError: the answer names none.
    """
    device = answer.get("device")
    if not isinstance(device, dict) or not {"name", "udid", "os_version", "os_build"} <= device.keys():
        raise InfrastructureError("ios: the answer names no device: it is of another version of the program")
    return Fingerprint(
        runner="ios",
        device_id=hashlib.sha256(str(device["udid"]).encode()).hexdigest(),
        model=str(device["name"]),
        os_build=f"iOS {device['os_version']} ({device['os_build']})",
        cpu="not told",
        machine="arm64",
        runtime="",
        runtime_version="",
        threads=job.threads,
    )


def _launch(name: str, job: Job, timing: Timing, how: How, *, first: bool, last: bool) -> Seen:
    nonce, where = secrets.token_hex(16), f"ios:{how.where}" if how.where else "ios"
    limit_s = INSTALL_S + timing.timeout_s + (timing.sustained_s if last else 0.0)
    asked = json.loads(question(job, str(job.model.resolve()), nonce, timing, how, first=first, last=last))
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        question_file, answer = Path(folder, "job.json"), Path(folder, "answer.json")
        question_file.write_text(json.dumps({**asked, "where": how.where, "compute_units": "ALL"}), encoding="utf-8")
        try:
            ended = subprocess.run(
                [sys.executable, "-P", str(PROGRAM), str(question_file), str(answer)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise InfrastructureError(
                f"{where}: {name} did not end within {limit_s:g} s. Unlock the phone and keep it awake."
            ) from None
        _check_end(where, name, job, ended)
        text = answer.read_text(encoding="utf-8") if answer.exists() else ""
    return Seen(decode(f"{where}: {name}", text, nonce), Conditions(), Conditions())


def _check_end(where: str, name: str, job: Job, ended: subprocess.CompletedProcess[bytes]) -> None:
    tail = last_line(ended.stderr)
    if ended.returncode == JOB_IS_WRONG:
        raise SpecError(f"{where}{tail}")
    if ended.returncode == PACKAGE_IS_MISSING:
        raise MissingDependency(f"{where}{tail}")
    if ended.returncode == DEVICE_IS_LOST or "devicectl" in tail or ended.returncode < 0:
        raise InfrastructureError(f"{where}: the phone was lost or does not answer{tail}")
    if ended.returncode:
        raise StageError(f"{where}: {name}: Core ML cannot load or run {job.model.name}{tail}")
