"""Benchmark programs, where a device has no Python: benchmark_model, litert-benchmark, llama-bench.

They run inputs of their own, so what the file answers there is not compared. Their summary is kept as they tell it.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from edgedistill.errors import DataError, InfrastructureError, MissingDependency, SpecError, StageError
from edgedistill.parsers import benchmark_model, litert_benchmark, llama_bench, protobuf
from edgedistill.runners import How, Job, Timing
from edgedistill.runners._launches import ToolRun
from edgedistill.runners._perfetto import uptime
from edgedistill.runners._session import Session
from edgedistill.specs import Placement

# By a part of the program's file name: which formats it runs.
KINDS = {"benchmark_model": ("tflite",), "litert-benchmark": ("tflite",), "llama-bench": ("gguf",)}
FOLDERS = ("/data/local/tmp", "/opt/tensorflow-lite/tools", "/opt/tensorflow-lite", "/usr/local/bin", "/usr/sbin")
PROFILE_RUNS, LLAMA_REPETITIONS = 20, 10


@dataclass(frozen=True)
class Tool:
    """A program on the device."""

    kind: str
    path: str
    libraries: str = ""


def kind_of(name: str) -> str:
    """Which tool a program's file name says that it is.

    Raises:
        SpecError: none of those known.
    """
    plain = name.replace("litert_benchmark", "litert-benchmark").replace("llama_bench", "llama-bench")
    found = [kind for kind in KINDS if kind in plain]
    if not found:
        raise SpecError(f"--tool {name}: its file name must say what it is: {', '.join(KINDS)}.")
    return found[0]


def bring(session: Session, how: How, format_name: str) -> Tool:
    """The tool that the user named, pushed with the libraries that lie beside it.

    Raises:
        SpecError: it is not there, or runs other files.
    """
    named = how.tool.removeprefix("device:")
    kind = kind_of(Path(named).name)
    if format_name not in KINDS[kind]:
        raise SpecError(f"--tool {how.tool}: {kind} runs {', '.join(KINDS[kind])} files, this is .{format_name}.")
    if how.tool.startswith("device:"):
        if session.shell(f"[ -x {quote(named)} ]").status:
            raise SpecError(f"--tool {how.tool}: {session.name} has no such program, or may not execute it.")
        return Tool(kind, named)
    path = Path(named)
    if not path.is_file():
        raise SpecError(f"--tool {how.tool}: no such file. For one that is on the device: --tool device:/its/path.")
    remote = session.push(path)
    for library in sorted(path.parent.glob("*.so*")):
        if library.is_file():
            session.push(library, library.name)
    session.check(f"chmod 755 {quote(remote)}", "making the tool executable")
    return Tool(kind, remote, session.folder)


def find(session: Session, format_name: str) -> Tool | None:
    """A tool for the format that is on the device already."""
    for kind, formats in KINDS.items():
        if format_name not in formats:
            continue
        places = " ".join([f'"$(command -v {kind} 2>/dev/null)"', *(f"{folder}/{kind}" for folder in FOLDERS)])
        script = f'for p in {places}; do [ -n "$p" ] && [ -x "$p" ] && echo "$p" && exit 0; done; exit 1'
        ended = session.shell(script)
        if not ended.status:
            return Tool(kind, ended.stdout.strip())
    return None


def run(
    session: Session, tool: Tool, job: Job, model: str, timing: Timing, how: How, *, first: bool, traced: bool = False
) -> ToolRun:
    """One launch; `traced`: it also tells when it ended, for who meters it.

    Raises:
        StageError: the tool cannot run the file. InfrastructureError: the device was lost, or the output is not whole.
        MissingDependency: the program cannot be started there.
    """
    place = f"{session.folder}/out.{secrets.token_hex(4)}"
    pinned = ["taskset", how.core_mask] if how.core_mask else []
    argv, out = _command(tool, job, model, timing, place)
    environment = {"LD_LIBRARY_PATH": tool.libraries} if tool.libraries else {}
    ended = session.run([*pinned, *argv], environment=environment, timeout_s=timing.timeout_s, watch=True)
    ended_s, slack_s = uptime(session) if traced and tool.kind == "benchmark_model" else (None, 0.0)
    _check(session, tool, job, ended.status, ended.stdout + ended.stderr)
    try:
        told = _read(session, tool, ended.stdout, ended.stderr, out)
        profiled = _profile(session, tool, job, model, environment, pinned, timing) if first else ()
    except DataError as error:
        raise InfrastructureError(f"{session.name}: {tool.kind}: {error}.") from None
    peak = ended.peak_kb * 1024 / 1e6 if ended.peak_kb else told.peak_mb
    return replace(told, peak_mb=peak, placement=profiled, ended_s=ended_s, slack_s=slack_s)


def _command(tool: Tool, job: Job, model: str, timing: Timing, out: str) -> tuple[list[str], str]:
    """The command line, and the result file that it writes; empty where it prints."""
    if tool.kind == "benchmark_model":
        return [
            tool.path, f"--graph={model}", f"--signature_to_run_for={job.signature}", f"--num_threads={job.threads}",
            f"--num_runs={timing.runs_min}", f"--min_secs={timing.time_s:g}", f"--max_secs={timing.cap_s:g}",
            f"--warmup_runs={timing.warmup_runs}", f"--warmup_min_secs={timing.warmup_s:g}",
            f"--result_file_path={out}",
        ], out  # fmt: skip
    if tool.kind == "litert-benchmark":
        return [
            tool.path, "--model", model, "--signature", job.signature, "--num_threads", str(job.threads),
            "--num_runs", str(timing.runs_min), "--warmup_runs", str(timing.warmup_runs), "--result_json", out,
        ], out  # fmt: skip
    rows = job.inputs.get("attention_mask")  # of a classifier only what the mask shows is computed
    tokens = (
        max(sum(row) for row in rows)
        if rows
        else max((len(row) for row in job.inputs.get("input_ids", ())), default=job.prompt_tokens)
    )
    return [
        tool.path, "-m", model, "-t", str(job.threads), "-p", str(tokens), "-n", str(job.decode_tokens),
        "-r", str(LLAMA_REPETITIONS), "-ngl", "0", "-o", "json",
    ], ""  # fmt: skip


def _check(session: Session, tool: Tool, job: Job, status: int, output: str) -> None:
    if status in (126, 127):
        raise MissingDependency(
            f"{session.name}: {tool.path} cannot be started there ({output.strip()[-200:]}). It must be built for this "
            "device: its processor, and Android or Linux."
        )
    if status > 128:
        raise StageError(f"{session.name}: {tool.kind} crashed on {job.model.name} (signal {status - 128})")
    if status:
        told = f"{tool.kind} cannot run {job.model.name} [{job.signature}]: {_reason(output)}"
        raise StageError(f"{session.name}: {told}")


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    return (told or lines or ["no reason given"])[-1][:300]


def _read(session: Session, tool: Tool, stdout: str, stderr: str, out: str) -> ToolRun:
    if tool.kind == "llama-bench":
        return _of_llama(llama_bench.parse(stdout))
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        got = Path(folder, "result")
        written = not session.shell(f"[ -s {quote(out)} ]").status
        if written:
            session.pull(out, got)
        if tool.kind == "litert-benchmark":
            seen = litert_benchmark.parse(got.read_text(encoding="utf-8") if written else stdout)
            return ToolRun(seen.inference, load_ms=seen.init_ms, first_ms=seen.first_inference_ms)
        if written:
            result = protobuf.parse(got.read_bytes())
            return ToolRun(result.inference, load_ms=result.init_ms, first_ms=result.first_inference_ms)
    run = benchmark_model.parse(stdout + "\n" + stderr)  # an older build, which does not know the flag
    if run.inference is None:
        raise DataError("no measurement in what it printed")
    return ToolRun(run.inference, load_ms=run.init_ms, first_ms=run.first_inference_ms, peak_mb=run.peak_memory_mb)


def _of_llama(tests: Sequence[llama_bench.LlamaTest]) -> ToolRun:
    prefill = [test for test in tests if test.kind == "prefill"]
    decode = [test for test in tests if test.kind == "decode"]
    if len(prefill) != 1 or len(decode) > 1 or not prefill[0].samples_ns:
        raise DataError(f"{len(prefill)} prefill and {len(decode)} decode tests, where one with samples was asked for")
    speeds = {test.kind: test.tokens_per_s for test in (*prefill, *decode)}
    return ToolRun(samples_ns=prefill[0].samples_ns, tokens_per_s=speeds, version=prefill[0].build)


def _profile(
    session: Session, tool: Tool, job: Job, model: str, environment: dict[str, str], pinned: list[str], timing: Timing
) -> tuple[Placement, ...]:
    """Where operators run, from a run of its own: profiling slows the operators down."""
    if tool.kind != "benchmark_model":
        return ()
    argv = [
        tool.path, f"--graph={model}", f"--signature_to_run_for={job.signature}", f"--num_threads={job.threads}",
        f"--num_runs={PROFILE_RUNS}", "--min_secs=0", "--warmup_runs=1", "--warmup_min_secs=0",
        "--enable_op_profiling=true",
    ]  # fmt: skip
    ended = session.run([*pinned, *argv], environment=environment, timeout_s=timing.timeout_s)
    _check(session, tool, job, ended.status, ended.stdout + ended.stderr)
    return benchmark_model.parse(ended.stdout + "\n" + ended.stderr).placement
