"""Does the host runner's harness cost time? Its medians beside those of a bare interpreter loop, launch by launch.

python bench/harness_overhead.py [--work DIR] [--pairs 20]

The bare loop is what a person would write: the runtime's public `Interpreter`, its inputs set, `invoke()` timed. Both
run the same file, on the same sample and for the same time, each launch in a process of its own, in turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from _machine import write
from gate_experiment import built

from edgedistill.gate import paired_interval
from edgedistill.pipeline import benching
from edgedistill.runners import Job, Timing
from edgedistill.runners.host import measure_many

LIMIT = 0.02
TIMING = Timing(warmup_s=0.1, runs_min=50, time_s=0.3)
BARE = """
import json, sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter
job = json.loads(sys.argv[1])
interpreter = Interpreter(model_path=job["model"], num_threads=1)
interpreter.allocate_tensors()
for name, detail in interpreter.get_signature_runner(job["signature"]).get_input_details().items():
    value = np.array(job["inputs"][name], detail["dtype"]).reshape(detail["shape"])
    interpreter.set_tensor(detail["index"], value)
def loop(seconds, runs):
    times, begin = [], time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times) < runs:
        start = time.perf_counter_ns()
        interpreter.invoke()
        times.append(time.perf_counter_ns() - start)
    return times
loop(job["warmup_s"], 3)
print(json.dumps(loop(job["time_s"], job["runs_min"])))
"""


def bare_ms(job: dict[str, object]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", BARE, json.dumps(job)], capture_output=True, text=True, check=True, timeout=120
    )
    return statistics.median(json.loads(done.stdout)) / 1e6


def main(work: Path, pairs: int) -> None:
    rows, figures = [], {}
    for layers in (1, 10):
        bundle = built(work, layers)
        # the bare interpreter runs the file's first graph, which is that of the shortest texts
        name, job = next(iter(benching.timing_jobs(bundle, 1).items()))
        inputs = {key: samples[:1] for key, samples in job.inputs.items()}
        asked = {"model": str(job.model), "signature": name, "inputs": {key: one[0] for key, one in inputs.items()},
                 "warmup_s": TIMING.warmup_s, "time_s": TIMING.time_s, "runs_min": TIMING.runs_min}  # fmt: skip
        ours, bare = [], []
        one = Job(job.model, name, inputs)
        for turn in range(pairs):
            for place in (turn % 2, 1 - turn % 2):
                if place:
                    ours.append(measure_many({"runner": one}, launches=1, timing=TIMING)["runner"].launch_medians_ms[0])
                else:
                    bare.append(bare_ms(asked))
        seen = paired_interval(bare, ours)
        figures[f"{layers} layers"] = {"bare_ms": bare, "runner_ms": ours, **seen.model_dump()}
        verdict = "yes" if max(seen.high - 1, 1 - seen.low) <= LIMIT else "not shown"
        verdict = verdict if abs(seen.ratio - 1) <= LIMIT else "NO"
        rows.append(
            f"| {layers} | {1000 * statistics.median(bare):.2f} | {1000 * statistics.median(ours):.2f} | "
            f"{seen.ratio:.4f} | {seen.low:.4f} to {seen.high:.4f} | {verdict} |"
        )
    head = [
        "# The host runner beside a bare interpreter loop",
        "",
        f"{pairs} pairs of launches in turns, one thread; ratio: the runner's median over the bare loop's. The last "
        f"column says whether its whole 95% interval is within {LIMIT:.0%}.",
        "",
        "| layers | bare, us | runner, us | ratio | 95% interval | within 2% |",
        "|--:|--:|--:|--:|--:|---|",
    ]
    write("harness_overhead", figures, "\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("gate_experiment_work"))
    parser.add_argument("--pairs", type=int, default=20)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    main(options.work, options.pairs)
