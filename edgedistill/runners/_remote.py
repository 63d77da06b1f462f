"""Measuring on a device at the end of a line: what `adb` and `ssh` share."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from edgedistill.errors import MissingDependency, SpecError, StageError
from edgedistill.runners import How, Job, Timing
from edgedistill.runners._device import Facts, read_conditions, read_facts
from edgedistill.runners._fitness import disturbed
from edgedistill.runners._launches import (
    JOB_IS_WRONG,
    PACKAGE_IS_MISSING,
    Seen,
    ToolRun,
    check_jobs,
    decode,
    disturbance,
    interleaved,
    last_line,
    pack_program,
    question,
    summarize,
)
from edgedistill.runners._perfetto import POLL_MS, Recorded, available, record
from edgedistill.runners._session import Session, opened
from edgedistill.runners._settling import Waits, judged, settle
from edgedistill.runners._toolruns import summarize_tool
from edgedistill.runners._tools import KINDS, Tool, bring, find
from edgedistill.runners._tools import run as tool_run
from edgedistill.runners._transport import Transport
from edgedistill.specs import Conditions, Fingerprint, Measurement, Progress, Silent

PACKAGES = {
    "tflite": ("ai_edge_litert", "pip install numpy ai-edge-litert"),
    "onnx": ("onnxruntime", "pip install numpy onnxruntime"),
    "gguf": ("llama_cpp", "pip install numpy llama-cpp-python"),
    "litertlm": ("litert_lm", "pip install litert-lm-api"),
}
RETRIES = 2
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


@dataclass(frozen=True)
class Ready:
    """A session with everything in place: our program, or a benchmark program for the formats that have none there;
    the models by job, and the device's facts.
    """

    session: Session
    facts: Facts
    program: str
    tools: Mapping[str, Tool]
    models: Mapping[str, str]
    timing: Timing
    how: How
    launches: int
    traced: bool  # Perfetto is there to record power
    untold: list[Recorded] = field(default_factory=list)  # it was, and told nothing: it is not asked again
    waits: Waits = field(default_factory=Waits)


def measure_on(
    transport: Transport,
    jobs: Mapping[str, Job],
    *,
    launches: int,
    timing: Timing | None = None,
    how: How | None = None,
    progress: Progress | None = None,
) -> dict[str, Measurement]:
    """Push, measure, fetch, clean up. See `Runner` for what is raised."""
    timing, how = timing or Timing(), how or How()
    how = replace(how, unfit=how.unfit or "mark")
    check_jobs(jobs, launches, tuple(PACKAGES), transport.runner)
    with opened(transport, how.reconnect_s) as session:
        ready = _prepare(session, jobs, timing, how, launches)

        def run(name: str, job: Job, turn: int) -> Seen:
            return session.steadily(lambda: _steady_launch(ready, name, job, turn))

        seen = interleaved(jobs, launches, run, progress or Silent())
    return {name: _measured(ready, job, seen[name]) for name, job in jobs.items()}


def _measured(ready: Ready, job: Job, seen: list[Seen]) -> Measurement:
    fingerprint, context, tool = _fingerprint(ready, job), _context(ready, seen), ready.tools.get(job.format)
    if tool:
        return summarize_tool(job, fingerprint, tool.kind, seen, context)
    return summarize(job, fingerprint, seen, context)


def _prepare(session: Session, jobs: Mapping[str, Job], timing: Timing, how: How, launches: int) -> Ready:
    facts = session.steadily(lambda: read_facts(session))
    session.remember(lambda: replace(read_facts(session), cores=0))  # cores are switched off and on as they are needed
    _check_mask(session, how.core_mask, facts.cores)
    formats = sorted({job.format for job in jobs.values()})
    found = session.steadily(lambda: {name: _tool_for(session, how, name) for name in formats})
    tools = {name: tool for name, tool in found.items() if tool}
    if tools and timing.sustained_s:
        raise SpecError("--sustained: benchmark programs keep no samples over time; it needs Python on the device.")
    pushed: dict[Path, str] = {}
    for job in jobs.values():
        if job.model not in pushed:
            pushed[job.model] = session.push(job.model, f"model_{len(pushed)}{job.model.suffix}")
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        program = session.push(pack_program(Path(folder)))
    models = {name: pushed[job.model] for name, job in jobs.items()}
    return Ready(
        session, facts, program, tools, models, timing, how, launches, timing.energy_s > 0 and available(session)
    )


def _tool_for(session: Session, how: How, format_name: str) -> Tool | None:
    """The benchmark program for a format: the one named, or one that is there where Python or the runtime is not.

    Raises:
        MissingDependency: neither our program nor another can run there.
    """
    if how.tool:
        return bring(session, how, format_name)
    why = _why_no_python(session, how.python, format_name)
    if not why:
        return None
    if found := find(session, format_name):
        return found
    programs = " or ".join(kind for kind, formats in KINDS.items() if format_name in formats)
    other = f"; or give a program for it, --tool FILE ({programs})" if programs else ""
    raise MissingDependency(f"{session.name}: {why}, or name another interpreter with --python{other}.")


def _check_mask(session: Session, mask: str, cores: int) -> None:
    if mask and cores and int(mask, 16) >> cores:
        raise SpecError(f"core mask {mask}: {session.name} has {cores} cores, so at most {(1 << cores) - 1:x}.")


def _why_no_python(session: Session, python: str, format_name: str) -> str:
    """Why our program cannot run there, and what to install; empty when it can."""
    package, install = PACKAGES[format_name]
    script = f"{quote(python)} -c 'import sys, numpy, {package}; assert sys.version_info >= (3, 10)'"
    ended = session.shell(script, 120.0)
    if ended.status == 127:
        return f"has no {python}: install Python 3.10 or newer there"
    if ended.status:
        why = last_line(ended.stderr) or ": Python 3.10 or newer is needed"
        return f"{python} there cannot run .{format_name} files{why}. On the device: {install}"
    return ""


def _steady_launch(ready: Ready, name: str, job: Job, turn: int) -> Seen:
    """A launch on a device that was fit from its beginning to its end; one that was disturbed is repeated.

    Raises:
        InfrastructureError: the device is not fit, and is to be refused then.
    """
    how, waits = ready.how, ready.waits
    for again in range(RETRIES + 1):
        before, unfit = settle(ready.session, how, waits)
        answer, told, power = _once(ready, name, job, turn, before)
        after = read_conditions(ready.session)
        found = disturbed(answer)
        if (after.thermal_status or 0) > (before.thermal_status or 0) and not ready.timing.sustained_s:
            found.append(f"it began to throttle in a launch (thermal status {after.thermal_status}): cool it")
        if not found or how.unfit == "record":
            return Seen(answer, before, after, told, power, unfit)
        if again < RETRIES:
            waits.repeated += 1
    return Seen(answer, before, after, told, power, (*unfit, *judged(ready.session, how, found)))


def _once(
    ready: Ready, name: str, job: Job, turn: int, before: Conditions
) -> tuple[dict[str, Any], ToolRun | None, Recorded | None]:
    """One launch, by our program or by a tool, recorded by Perfetto where that tells something."""
    tool, traced = ready.tools.get(job.format), ready.traced and not ready.untold

    def launch() -> tuple[dict[str, Any], ToolRun | None]:
        if not tool:
            return _launch(ready, name, job, turn, traced=traced), None
        model, first = ready.models[name], turn == 0
        return {}, tool_run(ready.session, tool, job, model, ready.timing, ready.how, first=first, traced=traced)

    if not traced:
        return *launch(), next(iter(ready.untold), None)
    limit_s = ready.timing.timeout_s + ready.timing.sustained_s
    done, power = record(ready.session, limit_s, launch, pause=tool is not None)
    if power.trace is None or (before.charging and not power.trace.rails):
        ready.untold.append(power)
    return *done, power


def _launch(ready: Ready, name: str, job: Job, turn: int, *, traced: bool) -> dict[str, Any]:
    session, nonce = ready.session, secrets.token_hex(16)
    last = turn == ready.launches - 1
    limit_s = ready.timing.timeout_s + (ready.timing.sustained_s if last else 0.0)
    answer = f"{session.folder}/answer.json"
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        asked, got = Path(folder, "job.json"), Path(folder, "answer.json")
        asked.write_text(
            question(
                job, ready.models[name], nonce, ready.timing, ready.how, first=turn == 0, last=last, traced=traced
            ),
            encoding="utf-8",
        )
        remote = session.push(asked)
        session.check(f"rm -f {quote(answer)}", "removing the last answer")
        ended = session.run(
            [ready.how.python, "-m", "_program", remote, answer],
            environment={**ENVIRONMENT, "PYTHONPATH": ready.program, "PYTHONDONTWRITEBYTECODE": "1"},
            timeout_s=limit_s,
        )
        _check_end(session, name, job, ended.status, ended.stderr)
        session.pull(answer, got)
        return decode(f"{session.name}: {name}", got.read_text(encoding="utf-8", errors="replace"), nonce)


def _check_end(session: Session, name: str, job: Job, status: int, stderr: str) -> None:
    tail, where = last_line(stderr), f"{session.name}: {name}"
    if status == JOB_IS_WRONG:
        raise SpecError(f"{where}: {job.model.name}{tail}")
    if status == PACKAGE_IS_MISSING:
        raise MissingDependency(f"{where}{tail}")
    if status > 128:
        raise StageError(f"{where}: the runtime crashed on {job.model.name} (signal {status - 128}){tail}")
    if status:
        raise StageError(f"{where}: the runtime cannot load or run {job.model.name} [{job.signature}]{tail}")


def _fingerprint(ready: Ready, job: Job) -> Fingerprint:
    facts, runner = ready.facts, ready.session.runner
    return Fingerprint(
        runner="adb" if runner == "adb" else "ssh",
        device_id=facts.device_id,
        model=facts.model,
        os_build=facts.os_build,
        cpu=facts.cpu,
        machine=facts.machine,
        runtime="",
        runtime_version="",
        threads=job.threads,
        core_mask=ready.how.core_mask,
        emulator=facts.emulator,
    )


def _context(ready: Ready, seen: list[Seen]) -> dict[str, str | float]:
    """The circumstances that shape a timing, so that a reader can judge it."""
    before = [launch.before for launch in seen]
    told: dict[str, str | float | None] = {
        "cpu": ready.facts.cpu,
        "os": ready.facts.os_build,
        "governor": before[0].governor or "not readable",
        "load_average_max": max((item.load_average for item in before if item.load_average is not None), default=None),
        "battery_percent_min": min(
            (item.battery_percent for item in before if item.battery_percent is not None), default=None
        ),
        "temperature_celsius_max": max(
            (launch.after.temperature_celsius for launch in seen if launch.after.temperature_celsius is not None),
            default=None,
        ),
        # it polls during the timed inferences, too
        "recorded_by": f"Perfetto, every {POLL_MS} ms" if any(launch.power for launch in seen) else None,
        "involuntary_switches": float(sum(launch.answer.get("involuntary_switches", 0) for launch in seen)),
        "waited_s": ready.waits.waited_s,
        "launches_repeated": float(ready.waits.repeated),
        "reconnections": float(ready.session.reconnections),
        **disturbance(seen),
    }
    return {key: value for key, value in told.items() if value is not None}
