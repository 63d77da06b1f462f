"""The process that is measured: one launch of one file. Started by `host.py` as `python -P _host_child.py JOB ANSWER`.

It imports the runtime and numpy only, so that its memory is the runtime's. An exception it does not expect ends it with
a traceback, whose last line the parent reports; exit code 64 means that the job itself is wrong.
"""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from ai_edge_litert import __version__ as runtime_version
from ai_edge_litert.interpreter import Interpreter

JOB_IS_WRONG = 64
STATUS = Path("/proc/self/status")


class JobError(Exception):
    """The job names something that the file does not have."""


class Bound:
    """One signature of a loaded file, with tensors set and invoked directly.

    The public signature runner resizes, allocates and copies outputs on every call: 4 us, 15 % of a 30 us model. Here a
    timed call is the runtime's `Invoke` alone, as in its own benchmark tool. The handle is private to the package,
    whose version is pinned.
    """

    def __init__(self, model: str, signature: str, threads: int) -> None:
        self._interpreter = Interpreter(model_path=model, num_threads=threads)
        known = sorted(self._interpreter.get_signature_list())
        if signature not in known:
            raise JobError(f"the file has no signature {signature!r}; it has: {', '.join(known) or 'none'}")
        runner = self._interpreter.get_signature_runner(signature)
        self._handle = self._interpreter._interpreter
        self._subgraph = runner._subgraph_index
        self.inputs: dict[str, dict[str, Any]] = runner.get_input_details()
        self._handle.AllocateTensors(self._subgraph)

    def feed(self, sample: list[tuple[int, np.ndarray[Any, Any]]]) -> None:
        """Copy one sample into the input tensors."""
        for index, value in sample:
            self._handle.SetTensor(index, value, self._subgraph)

    def time(self, sample: list[tuple[int, np.ndarray[Any, Any]]]) -> int:
        """Nanoseconds of one inference on `sample`; writing the inputs is not counted."""
        self.feed(sample)
        invoke, subgraph = self._handle.Invoke, self._subgraph
        start = perf_counter_ns()
        invoke(subgraph)
        return perf_counter_ns() - start


def to_samples(bound: Bound, inputs: dict[str, list[Any]]) -> list[list[tuple[int, np.ndarray[Any, Any]]]]:
    """The samples as (tensor index, array) pairs of the file's dtype and shape.

    Raises:
        JobError: names, counts, shapes or values do not fit the file.
    """
    if set(inputs) != set(bound.inputs):
        raise JobError(f"inputs {sorted(inputs)} do not fit the file, which wants {sorted(bound.inputs)}")
    count = len(next(iter(inputs.values())))
    samples: list[list[tuple[int, np.ndarray[Any, Any]]]] = [[] for _ in range(count)]
    for name, values in inputs.items():
        detail = bound.inputs[name]
        shape, dtype = tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"])
        for sample, value in zip(samples, values, strict=True):
            given = np.asarray(value)
            if given.size != int(np.prod(shape)):
                raise JobError(f"input {name!r}: a sample has shape {list(given.shape)}, the file wants {list(shape)}")
            cast = given.astype(dtype).reshape(shape)
            if dtype.kind in "iu" and not np.array_equal(cast.reshape(given.shape), given):
                raise JobError(f"input {name!r}: a sample holds numbers that {dtype.name} cannot hold")
            sample.append((int(detail["index"]), cast))
    return samples


def peak_kb() -> int:
    """The highest resident memory of this process so far, in KiB."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1])
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage // 1024 if sys.platform == "darwin" else usage


def forget_peak() -> None:
    """Restart the kernel's high-water mark, so that importing and reading the job do not count as the model's."""
    gc.collect()
    with contextlib.suppress(OSError):  # not writable in some sandboxes: the baseline is then the higher, older peak
        Path("/proc/self/clear_refs").write_text("5")


def repeat(
    bound: Bound, samples: list[list[tuple[int, np.ndarray[Any, Any]]]], runs: int, seconds: float, job: dict[str, Any]
) -> list[int]:
    """Time single inferences until both `runs` and `seconds` are reached, or one of the job's caps, in ns."""
    times: list[int] = []
    start = perf_counter_ns()
    elapsed = 0.0
    while (len(times) < runs or elapsed < seconds) and len(times) < job["runs_max"] and elapsed < job["cap_s"]:
        times.append(bound.time(samples[len(times) % len(samples)]))
        elapsed = (perf_counter_ns() - start) / 1e9
    return times


def launch(job: dict[str, Any]) -> dict[str, Any]:
    """Load, run once, warm up, measure; every figure of one launch."""
    forget_peak()
    baseline_kb = peak_kb()
    start = perf_counter_ns()
    bound = Bound(job["model"], job["signature"], job["threads"])
    load_ns = perf_counter_ns() - start
    samples = to_samples(bound, job["inputs"])
    first_ns = bound.time(samples[0])
    gc.disable()
    repeat(bound, samples, job["warmup_runs"], job["warmup_s"], job)
    times = repeat(bound, samples, job["runs_min"], job["time_s"], job)
    return {
        "nonce": job["nonce"],
        "runtime": f"ai-edge-litert {runtime_version}",
        "load_ns": load_ns,
        "first_ns": first_ns,
        "samples_ns": times,
        "baseline_kb": baseline_kb,
        "peak_kb": peak_kb(),
        "involuntary_switches": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
    }


def main(job_file: str, answer_file: str) -> int:
    """Measure the job and put the whole answer in place at once; the exit code."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    try:
        answer = launch(job)
    except JobError as error:
        sys.stderr.write(f"{error}\n")
        return JOB_IS_WRONG
    partial = Path(f"{answer_file}.partial")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.replace(answer_file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
