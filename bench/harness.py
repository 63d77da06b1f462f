"""What the host runner adds to a measurement: its median against that of a bare interpreter loop on the same file.

python bench/harness.py [--pairs 20]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from _machine import write

from edgedistill.runners import Job
from edgedistill.runners.host import QUIET, Timing, measure_many

BARE = """
import gc, statistics, sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
rows = np.random.default_rng(0).standard_normal((16, *interpreter.get_input_details()[0]["shape"])).astype(np.float32)
index, invoke, clock = interpreter.get_input_details()[0]["index"], interpreter.invoke, time.perf_counter_ns
gc.disable()
times, end = [], time.monotonic() + 0.6
while time.monotonic() < end:
    interpreter.set_tensor(index, rows[len(times) % 16])
    start = clock()
    invoke()
    times.append(clock() - start)
print(statistics.median(times[len(times) // 3:]) / 1e6)
"""
WIDTHS = {"small": 96, "middle": 384, "large": 1024}
TIMING = Timing(warmup_s=0.2, runs_min=50, time_s=0.4, runs_max=1_000_000)


def make(path: Path, width: int) -> None:
    """Four dense layers of this width."""
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
    warnings.simplefilter("ignore")
    import litert_torch
    import torch

    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    litert_torch.convert(torch.nn.Sequential(*layers).eval(), (torch.ones(1, width),)).export(str(path))


def bare(path: Path) -> float:
    """The median of one bare process, ms."""
    command = [sys.executable, "-c", BARE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **QUIET})
    return float(done.stdout)


def main(pairs: int, work: Path) -> None:
    import numpy as np

    rows, figures = [], {}
    for name, width in WIDTHS.items():
        path = work / f"{name}.tflite"
        make(path, width)
        inputs = {"args_0": np.random.default_rng(0).standard_normal((16, width)).astype(np.float32).tolist()}
        ratios, ours, theirs = [], [], []
        for turn in range(pairs):
            first = bare(path) if turn % 2 else None
            seen = measure_many({"m": Job(path, "serving_default", inputs)}, launches=1, timing=TIMING)["m"]
            second = first if first is not None else bare(path)
            ours.append(seen.launch_medians_ms[0])
            theirs.append(second)
            ratios.append(ours[-1] / second)
        middle, low, high = statistics.median(ratios), *np.quantile(ratios, (0.25, 0.75))
        figures[name] = {"ours_ms": ours, "bare_ms": theirs, "median_ratio": middle}
        rows.append(f"| 4 x {width} | {statistics.median(theirs):.4f} | {statistics.median(ours):.4f} | {middle:.3f} "
                    f"| {low:.3f} to {high:.3f} |")  # fmt: skip
    head = ["# What the host runner adds", "", f"{pairs} pairs of processes, in turns; one thread.", ""]
    head += ["| dense layers | bare loop, ms | host runner, ms | median ratio | middle half |", "|---|--:|--:|--:|---|"]
    write("harness", figures, "\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        main(asked.pairs, Path(folder))
