"""What every runner shares: the order of launches, the question put to the measuring program, and its answer read."""

from __future__ import annotations

import json
import statistics
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgedistill.errors import InfrastructureError, SpecError
from edgedistill.runners import How, Job, Timing
from edgedistill.runners._energy import energy_of
from edgedistill.runners._meters import wanted
from edgedistill.runners._perfetto import Recorded
from edgedistill.specs import (
    Conditions,
    Fingerprint,
    Launch,
    Measurement,
    Outputs,
    Placement,
    Progress,
    Provenance,
    Summary,
    Sustained,
)
from edgedistill.store import digest_of

PROGRAM = Path(__file__).with_name("_program")
JOB_IS_WRONG, PACKAGE_IS_MISSING = 64, 65  # the program's; importing it would load nothing, but it is another process
FIELDS = frozenset((
    "nonce", "runtime", "load_ns", "first_ns", "samples_ns", "measured_ns", "meters", "outputs", "tokens_per_s",
    "sustained", "baseline_kb", "peak_kb", "involuntary_switches",
))  # fmt: skip


@dataclass(frozen=True)
class ToolRun:
    """What a program said of one launch; `samples_ns` where it keeps them."""

    summary: Summary | None = None
    samples_ns: tuple[int, ...] = ()
    load_ms: float | None = None
    first_ms: float | None = None
    peak_mb: float | None = None
    tokens_per_s: dict[str, float] = field(default_factory=dict)
    placement: tuple[Placement, ...] = ()
    version: str = ""
    ended_s: float | None = None  # time since boot, at most `slack_s` after the program's last inference
    slack_s: float = 0.0


@dataclass(frozen=True)
class Seen:
    """One launch: the program's answer or a tool's, and the device before and after it."""

    answer: dict[str, Any]
    before: Conditions
    after: Conditions
    tool: ToolRun | None = None
    power: Recorded | None = None
    unfit: tuple[str, ...] = ()


def charging(seen: Sequence[Seen]) -> bool:
    """Whether a cable fed the device before or after any launch."""
    return any(state.charging for launch in seen for state in (launch.before, launch.after))


def pack_program(folder: Path) -> Path:
    """Write the measuring program into `folder` as one zip file that Python can import from."""
    path = folder / "program.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for source in sorted(PROGRAM.glob("*.py")):
            archive.writestr(f"_program/{source.name}", source.read_bytes())
    return path


def check_jobs(jobs: Mapping[str, Job], launches: int, formats: Sequence[str], runner: str) -> None:
    """Refuse what cannot be measured before anything is started.

    Raises:
        SpecError: no launches, or a file, format, thread count or sample count that cannot be.
    """
    if launches < 1:
        raise SpecError(f"launches must be at least 1, got {launches}")
    for name, job in jobs.items():
        if not (job.model.is_dir() if job.format == "coreml" else job.model.is_file()):
            raise SpecError(f"{name}: no such file: {job.model}")
        if job.format not in formats:
            raise SpecError(f"{name}: {job.model.name}: --on {runner} runs {', '.join(formats)} files only.")
        if job.threads < 1:
            raise SpecError(f"{name}: threads must be at least 1, got {job.threads}")
        counts = {key: len(samples) for key, samples in job.inputs.items()}
        if not counts and job.prompt_tokens > 0 and job.decode_tokens > 0:
            continue
        if job.format == "litertlm":
            raise SpecError(f"{name}: {job.model.name}: takes texts; give numbers of tokens, of prompt and of answer.")
        if not counts or min(counts.values()) < 1 or len(set(counts.values())) != 1:
            raise SpecError(f"{name}: every input needs the same number of samples, at least 1; got {counts}")


def interleaved(
    jobs: Mapping[str, Job], launches: int, run: Callable[[str, Job, int], Seen], progress: Progress
) -> dict[str, list[Seen]]:
    """Launch A, B, C, B, C, A, ... so that all share the noise. `run` is given the turn, from 0."""
    seen: dict[str, list[Seen]] = {name: [] for name in jobs}
    names = list(jobs)
    for turn in range(launches):
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            seen[name].append(run(name, jobs[name], turn))
            progress.advance(1)
    return seen


def question(
    job: Job, model: str, nonce: str, timing: Timing, how: How, *, first: bool, last: bool, traced: bool = False
) -> str:
    """The program's job, as JSON; `model` is the file's path where the program runs.

    The first launch also answers the samples; the last one, when the device is warmest, also runs the long run.
    `traced`: somebody else meters this launch as well, so that it pauses and runs for the meters in any case.
    """
    return json.dumps({
        **asdict(timing),
        "sustained_s": timing.sustained_s if last else 0.0,
        "nonce": nonce,
        "model": model,
        "format": job.format,
        "signature": job.signature,
        "threads": job.threads,
        "core_mask": how.core_mask,
        "inputs": {key: list(samples) for key, samples in job.inputs.items()},
        "answers": first and job.expected is not None,
        "decode_tokens": job.decode_tokens,
        "meters": wanted(),
        "traced": traced,
        "prompt_tokens": job.prompt_tokens,
    })  # fmt: skip


def decode(name: str, text: str, nonce: str) -> dict[str, Any]:
    """The program's answer; an answer that is not whole, or not to this question, is no answer.

    Raises:
        InfrastructureError: it is not.
    """
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        raise InfrastructureError(f"{name}: the measuring process ended without an answer") from None
    if not isinstance(answer, dict) or not answer.keys() >= FIELDS or not answer["samples_ns"]:
        raise InfrastructureError(f"{name}: the measuring process left an incomplete answer")
    if answer["nonce"] != nonce:
        raise InfrastructureError(f"{name}: the answer belongs to another launch")
    return answer


def last_line(stderr: bytes | str | None) -> str:
    """`: LINE`, a program's last word; the runtime's own chatter is skipped."""
    text = stderr.decode("utf-8", "replace") if isinstance(stderr, bytes) else stderr or ""
    lines = [line.strip() for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith(("INFO:", "I0000", "W0000"))]
    return f": {told[-1][:500]}" if told else ""


def summarize(
    job: Job, fingerprint: Fingerprint, seen: Sequence[Seen], context: Mapping[str, str | float]
) -> Measurement:
    """All launches of one job as a measurement; of an emulated device everything is emulated."""
    answers = [launch.answer for launch in seen]
    samples = [[nanoseconds / 1e6 for nanoseconds in answer["samples_ns"]] for answer in answers]
    highest = max(answers, key=lambda answer: int(answer["peak_kb"] or 0))
    named = fingerprint.model_copy(
        update={"runtime": str(answers[0]["runtime"][0]), "runtime_version": str(answers[0]["runtime"][1])}
    )
    speeds = sorted({key for answer in answers for key in answer["tokens_per_s"]})
    return Measurement(
        artifact_sha256=digest_of(job.model),
        provenance=Provenance.EMULATED if fingerprint.emulator else Provenance.MEASURED,
        device=f"{fingerprint.runner}: {fingerprint.cpu if fingerprint.runner == 'host' else fingerprint.model}",
        runtime=" ".join(map(str, answers[0]["runtime"])),
        signature=job.signature,
        threads=job.threads,
        samples_ms=tuple(value for launch in samples for value in launch),
        launch_counts=tuple(len(launch) for launch in samples),
        launch_medians_ms=tuple(statistics.median(launch) for launch in samples),
        first_inference_ms=statistics.median(answer["first_ns"] / 1e6 for answer in answers),
        load_ms=statistics.median(answer["load_ns"] / 1e6 for answer in answers),
        peak_memory_mb=_megabytes(highest["peak_kb"]),
        baseline_memory_mb=_megabytes(highest["baseline_kb"]),
        context={**context, "launches": float(len(seen)), **_tokens(answers)},
        launches=tuple(_launch(launch) for launch in seen),
        fingerprint=named,
        tokens_per_s={
            key: statistics.median(answer["tokens_per_s"][key] for answer in answers if key in answer["tokens_per_s"])
            for key in speeds
        },
        energy=energy_of([answer["meters"] for answer in answers], charging(seen), [launch.power for launch in seen]),
        placement=_placement(answers[0]),
        sustained=_sustained(answers),
        outputs=_compare(job, answers[0]["outputs"]),
        unfit=unfit_of(seen),
    )


def _launch(seen: Seen) -> Launch:
    answer = seen.answer
    return Launch(
        load_ms=answer["load_ns"] / 1e6,
        first_inference_ms=answer["first_ns"] / 1e6,
        peak_rss_mb=_megabytes(answer["peak_kb"]),
        baseline_rss_mb=_megabytes(answer["baseline_kb"]),
        involuntary_switches=answer["involuntary_switches"],
        **answer.get("shares", {}),
        tokens_per_s=answer["tokens_per_s"],
        before=seen.before,
        after=seen.after,
    )


def disturbance(seen: Sequence[Seen]) -> dict[str, float]:
    """The most that others took of the cores during a launch, as far as the launches tell."""
    told = [launch.answer.get("shares") or {} for launch in seen]
    found = {key: [item[key] for item in told if item.get(key) is not None] for key in ("others_share", "steal_share")}
    return {f"{key}_max": round(max(values), 3) for key, values in found.items() if values}


def unfit_of(seen: Sequence[Seen]) -> tuple[str, ...]:
    """Every reason that any launch had, once."""
    return tuple(dict.fromkeys(reason for launch in seen for reason in launch.unfit))


def _tokens(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The fewest tokens that a text had, of the prompt and of the answer; nothing where no text was made."""
    told = [answer["tokens"] for answer in answers if answer.get("tokens")]
    return {f"{name}_tokens": float(min(item[name] for item in told)) for name in ("prompt", "decoded") if told}


def _megabytes(kilobytes: int | None) -> float | None:
    """None: the program does not tell."""
    return None if kilobytes is None else kilobytes * 1024 / 1e6


def _placement(answer: Mapping[str, Any]) -> tuple[Placement, ...]:
    """Operators by compute unit, where the program tells them, the busiest unit first."""
    told = sorted(answer.get("placement") or (), key=lambda item: -float(item["time_ms"]))
    total = sum(item["time_ms"] for item in told)
    return tuple(Placement(**item, time_share=item["time_ms"] / total if total else 0.0) for item in told)


def _sustained(answers: Sequence[Mapping[str, Any]]) -> Sustained | None:
    """The long run of the last launch, when the device is warmest."""
    told = answers[-1]["sustained"]
    if not told:
        return None
    curve = tuple(value / 1e6 for value in told["medians_ns"])
    return Sustained(
        seconds=told["seconds"], window_s=told["window_s"], first_ms=curve[0], last_ms=curve[-1], curve_ms=curve
    )


def _compare(job: Job, outputs: Sequence[Mapping[str, Sequence[float]]]) -> Outputs | None:
    """What the file answered against what the job expects; a NaN counts as an infinite difference."""
    if job.expected is None or not outputs:
        return None
    worst, largest, agree = 0.0, 0.0, 0
    for number, answer in enumerate(outputs):
        same = True
        for name, expected in job.expected.items():
            wanted, found = list(expected[number]), list(answer.get(name, ()))
            if len(found) != len(wanted):
                raise InfrastructureError(
                    f"{job.model.name}: output {name!r} has {len(found)} numbers on the device, {len(wanted)} expected"
                )
            worst = max([worst, *(abs(a - b) if a == a else 1e308 for a, b in zip(found, wanted, strict=True))])
            largest = max([largest, *map(abs, wanted)])
            same = same and found.index(max(found)) == wanted.index(max(wanted))
        agree += same
    return Outputs(samples=len(outputs), max_abs_difference=worst, reference_max_abs=largest, labels_agree=agree)
