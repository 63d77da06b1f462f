"""One launch of one file: load, run once, warm up, measure. An exception that is not expected ends it with a traceback,
whose last line the caller reports; exit code 64 means that the job itself is wrong, 65 that a package is missing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from .metering import Metering
from .runtimes import PACKAGES, RUNTIMES, JobError
from .texts import TEXTS

JOB_IS_WRONG, PACKAGE_IS_MISSING = 64, 65
STATUS = Path("/proc/self/status")
LEAST_CORE_S = 0.2


def to_samples(bound: Any, inputs: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The samples as arrays of the file's dtype and shape; -1 in a shape is free.

    Raises:
        JobError: names, counts, shapes or values do not fit the file.
    """
    import numpy as np

    if set(inputs) != set(bound.inputs):
        raise JobError(f"inputs {sorted(inputs)} do not fit the file, which wants {sorted(bound.inputs)}")
    samples: list[dict[str, Any]] = [{} for _ in next(iter(inputs.values()))]
    for name, values in inputs.items():
        shape, dtype = bound.inputs[name][0], np.dtype(bound.inputs[name][1])
        for sample, value in zip(samples, values, strict=True):
            given = np.asarray(value)
            wanted = shape
            if -1 in shape:  # the last axes are the sample's own, those before are of size one
                free = [1] * (len(shape) - given.ndim) + list(given.shape)
                wanted = [own if size == -1 else size for size, own in zip(shape, free[-len(shape) :], strict=True)]
            if given.size != int(np.prod(wanted)):
                raise JobError(f"input {name!r}: a sample has shape {list(given.shape)}, the file wants {shape}")
            cast = given.astype(dtype).reshape(wanted)
            if dtype.kind in "iu" and not np.array_equal(cast.reshape(given.shape), given):
                raise JobError(f"input {name!r}: a sample holds numbers that {dtype.name} cannot hold")
            sample[name] = cast
    return samples


def time_one(bound: Any, sample: dict[str, Any]) -> int:
    """Nanoseconds of one inference on `sample`; writing the inputs is not counted."""
    bound.feed(sample)
    invoke = bound.invoke
    start = perf_counter_ns()
    invoke()
    return perf_counter_ns() - start


def peak_kb() -> int:
    """The highest resident memory of this process so far, in KiB."""
    if STATUS.exists():
        found = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        if found:
            return int(found[0].split()[1])
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage // 1024 if sys.platform == "darwin" else usage


def forget_peak() -> None:
    """Restart the kernel's high-water mark, so that importing and reading the job do not count as the model's."""
    gc.collect()
    with contextlib.suppress(OSError):  # not writable in some sandboxes: the baseline is then the higher, older peak
        Path("/proc/self/clear_refs").write_text("5")


class Plain:
    """What is timed of a file that maps inputs to outputs: single inferences, the samples in turn."""

    def __init__(self, bound: Any, samples: list[Any]) -> None:
        self._bound, self._samples = bound, samples

    def sample(self, n: int) -> int:
        """Nanoseconds of the n-th inference."""
        return time_one(self._bound, self._samples[n % len(self._samples)])

    steady = sample

    def tokens_per_s(self) -> dict[str, float]:
        """None: it makes no text."""
        return {}

    def tokens(self) -> dict[str, int]:
        """None: it makes no text."""
        return {}


class Texts:
    """What is timed of a decoder: prompts that are read and continued."""

    def __init__(self, bound: Any, samples: list[Any], count: int) -> None:
        self._bound, self._samples, self._count = bound, samples, count
        self.turns: list[dict[str, int]] = []

    def sample(self, n: int) -> int:
        """Nanoseconds until the first token behind the n-th prompt."""
        self.turns.append(self._bound.turn(self._samples[n % len(self._samples)], self._count))
        return self.turns[-1]["first_ns"]

    def steady(self, n: int) -> int:
        """Nanoseconds of a token behind the n-th prompt: what a long run is about."""
        self.sample(n)
        return self.turns[-1]["decode_ns"] // self.turns[-1]["decoded"]

    def tokens_per_s(self) -> dict[str, float]:
        """The medians over the turns so far."""
        pairs = {"prefill": ("prompt", "read_ns"), "decode": ("decoded", "decode_ns")}
        return {
            name: statistics.median(turn[count] * 1e9 / turn[spent] for turn in self.turns)
            for name, (count, spent) in pairs.items()
        }

    def tokens(self) -> dict[str, int]:
        """The fewest that were read and made: a runtime may split a prompt otherwise, and a model may end early."""
        return {name: min(turn[name] for turn in self.turns) for name in ("prompt", "decoded")}


def repeat(sample: Callable[[int], int], runs: int, seconds: float, job: dict[str, Any]) -> list[int]:
    """Take samples until both `runs` and `seconds` are reached, or one of the job's caps, in ns."""
    times: list[int] = []
    start = perf_counter_ns()
    elapsed = 0.0
    while (len(times) < runs or elapsed < seconds) and len(times) < job["runs_max"] and elapsed < job["cap_s"]:
        times.append(sample(len(times)))
        elapsed = (perf_counter_ns() - start) / 1e9
    return times


def sustain(sample: Callable[[int], int], seconds: float) -> dict[str, Any]:
    """Run without a pause for `seconds`; the median of each window of a minute, or of a fifth of a shorter run."""
    window = min(60.0, seconds / 5)
    medians, start, turn = [], perf_counter_ns(), 0
    for n in range(round(seconds / window)):
        times: list[int] = []
        while not times or perf_counter_ns() - start < (n + 1) * window * 1e9:
            times.append(sample(turn))
            turn += 1
        medians.append(statistics.median(times))
    return {"seconds": seconds, "window_s": window, "medians_ns": medians, "runs": turn}


def metered(timed: Any, job: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What the energy meters said, and the long run. Both are apart from the timed samples, which nothing disturbs.

    The long run is what is metered, where there is one; else a run of `energy_s` just for the meters.
    """
    metering = Metering(job, job["sustained_s"] or job["energy_s"])
    if not metering.found:
        return None, sustain(timed.steady, job["sustained_s"]) if job["sustained_s"] else None
    long: list[dict[str, Any]] = []

    def run() -> int:
        if job["sustained_s"]:
            long.append(sustain(timed.steady, job["sustained_s"]))
            return int(long[0]["runs"])
        return len(repeat(timed.sample, 1, job["energy_s"], {"runs_max": sys.maxsize, "cap_s": 2 * job["energy_s"]}))

    told = metering.during(job["energy_s"], run)
    return {**told, "sustained": bool(long)}, long[0] if long else None


def cpu_times() -> dict[str, float] | None:
    """Seconds of all cores since the start, by what they were spent on, and this process's own; None: not told."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal, as proc(5) has them
    spent = [int(value) / os.sysconf("SC_CLK_TCK") for value in first[1:9]]
    own = resource.getrusage(resource.RUSAGE_SELF)
    busy, steal = sum(spent[:3]) + sum(spent[5:7]), spent[7]
    return {"all": sum(spent), "busy": busy, "steal": steal, "own": own.ru_utime + own.ru_stime}


def others(before: dict[str, float] | None, after: dict[str, float] | None) -> dict[str, float | None]:
    """Shares of all cores that other processes, and other machines on the same processor, took in between; None where
    the kernel does not tell, or counted too few of its ticks of 10 ms to say.
    """
    total = after["all"] - before["all"] if before and after else 0.0
    if not before or not after or total < LEAST_CORE_S:
        return {"others_share": None, "steal_share": None}
    spent = {key: after[key] - before[key] for key in ("busy", "steal", "own")}
    shares = {"others_share": (spent["busy"] - spent["own"]) / total, "steal_share": spent["steal"] / total}
    return {key: min(1.0, max(0.0, value)) for key, value in shares.items()}


def pin(mask: str) -> None:
    """Keep this process on the cores of a hexadecimal mask, as `taskset` does; empty: on all.

    Raises:
        JobError: the device has none of these cores.
    """
    if mask:
        bits = int(mask, 16)
        try:
            os.sched_setaffinity(0, {core for core in range(bits.bit_length()) if bits >> core & 1})
        except OSError as error:
            raise JobError(f"core mask {mask}: {error.strerror}; the device has {os.cpu_count()} cores") from None


def answers_of(bound: Any, samples: list[Any]) -> list[dict[str, list[float]]]:
    """What the file answers on every sample, flat, by the name of the output."""
    found = []
    for sample in samples:
        time_one(bound, sample)
        found.append({name: value.reshape(-1).tolist() for name, value in bound.read().items()})
    return found


def launch(job: dict[str, Any]) -> dict[str, Any]:
    """Every figure of one launch."""
    pin(job["core_mask"])
    for package in PACKAGES[job["format"]]:
        importlib.import_module(package)
    forget_peak()
    baseline_kb = peak_kb()
    start = perf_counter_ns()
    makes_text = job["decode_tokens"] > 0
    bound: Any = (TEXTS if makes_text else RUNTIMES)[job["format"]](job)
    load_ns = perf_counter_ns() - start
    samples = to_samples(bound, job["inputs"]) if job["inputs"] else [bound.prompt(job["prompt_tokens"])]
    timed: Any = Texts(bound, samples, job["decode_tokens"]) if makes_text else Plain(bound, samples)
    first_ns = timed.sample(0)
    outputs = answers_of(bound, samples) if job["answers"] else []
    gc.disable()
    repeat(timed.sample, job["warmup_runs"], job["warmup_s"], job)
    if makes_text:
        timed.turns.clear()  # the warm-up does not count
    cores, begun = cpu_times(), perf_counter_ns()
    times = repeat(timed.sample, job["runs_min"], job["time_s"], job)
    measured_ns, shares = perf_counter_ns() - begun, others(cores, cpu_times())
    speeds, counted = timed.tokens_per_s(), timed.tokens()
    peak = peak_kb()  # before the meters' own machinery is loaded
    energy, long = metered(timed, job)
    return {
        "nonce": job["nonce"],
        "runtime": list(bound.runtime),
        "python": platform.python_version(),
        "load_ns": load_ns,
        "first_ns": first_ns,
        "samples_ns": times,
        "measured_ns": measured_ns,
        "meters": energy,
        "outputs": outputs,
        "tokens_per_s": speeds,
        "tokens": counted,
        "shares": shares,
        "sustained": long,
        "baseline_kb": baseline_kb,
        "peak_kb": peak,
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
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{sys.executable} has no package {error.name}\n")
        return PACKAGE_IS_MISSING
    partial = Path(f"{answer_file}.partial")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.replace(answer_file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
