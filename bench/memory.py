"""Peak memory and load time of exported files on this host, measured by the host's runner, beside the plan's lines.

python bench/memory.py      (ten minutes on one core; writes results/memory.md)

The weights are random: neither depends on what was learned. Each file is measured in two fresh processes.
"""

import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from _machine import write
from _size_exports import WRITERS, Case, frozen_student
from size import students

from edgedistill import catalog, plan
from edgedistill.plan.cost import inference, workload
from edgedistill.predict import predict
from edgedistill.runners import Job
from edgedistill.runners.host import Timing, measure_many
from edgedistill.specs import QuantScheme
from edgedistill.students import bert

TIMING = Timing(warmup_runs=1, warmup_s=0.0, runs_min=5, time_s=0.1, timeout_s=300)
SAMPLES, LAUNCHES = 2, 2
MIDDLE = bert.Config(layers=4, width=256, heads=4, ffn=1024, vocabulary=8000, max_length=128, classes=77)
BUCKETS = ((64,), (16, 32, 64))


def cases() -> list[tuple[str, Case]]:
    named = [(f"{size} {family}", family, config, buckets) for size, family, config, buckets in students()]
    named = [one for one in named if one[1] != "llama" and "DeiT" not in one[0]]
    named.append(("4 x 256 bert", "bert", MIDDLE, (64,)))
    found = []
    for name, family, config, buckets in named:
        for activations in ("dynamic_int8", "static_int8", "float"):
            scheme = QuantScheme(activations=activations)
            for lengths in BUCKETS if name == "default bert" else (buckets[:1],):
                told = f"{name}, {activations}, {len(lengths) if family == 'bert' else 1}"
                found.append((told, Case("tflite", family, config, scheme, lengths)))
    return found


def job(case: Case, path: Path, *, keep: bool = False) -> Job:
    """A file of the case at `path` and random inputs for it; `keep`: one that is there is taken."""
    family = catalog.load_plugin("students", case.family)
    signature = family.signatures(case.config, case.buckets)[-1]
    random = np.random.default_rng(0)
    feeds = [family.sample(case.config, signature, random) for _ in range(SAMPLES)]
    if not (keep and path.exists()):
        WRITERS["tflite"](frozen_student(case), case.buckets, path)
    return Job(
        path, signature.name, {port.name: [one[port.name].tolist() for one in feeds] for port in signature.inputs}
    )


def main() -> None:
    target = catalog.load_target("host")
    rows, figures, apart = [], {}, {"memory": [], "load": []}
    empty = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, case) in enumerate(cases()):
            path = Path(folder) / f"{number}.tflite"
            seen = measure_many({"file": job(case, path)}, launches=LAUNCHES, timing=TIMING)["file"]
            size, family = path.stat().st_size, catalog.load_plugin("students", case.family)
            lines = plan.predict(target, inference(family, case.config, case.scheme, case.buckets, size))
            memory = next(line for line in lines if line.quantity == "peak_memory_mb")
            work = workload(family, case.config, case.scheme, case.buckets[-1], file_bytes=size)
            load = predict(target, work, "first_load_ms")
            empty = empty or seen.baseline_memory_mb  # of the first, whose inputs are few
            own, told = (seen.peak_memory_mb - seen.baseline_memory_mb), memory.median - empty
            apart["memory"].append(told / own)
            apart["load"].append(load.median / seen.load_ms)
            inside = memory.low <= empty + own <= memory.high
            figures[name] = {
                "file_mb": size / 1e6, "peak_mb": seen.peak_memory_mb, "baseline_mb": seen.baseline_memory_mb,
                "predicted_peak_mb": memory.median, "terms": memory.terms, "inside": inside,
                "load_ms": seen.load_ms, "predicted_load_ms": load.median,
            }  # fmt: skip
            rows.append(
                f"| {name} | {size / 1e6:.2f} | {seen.peak_memory_mb:.1f} | {memory.median:.1f} | {own:.1f} |"
                f" {told:.1f} | {'yes' if inside else 'no'} | {seen.load_ms:.2f} | {load.median:.2f} |"
            )
            print(rows[-1], flush=True)
            path.unlink()
    errors = {name: 100 * median(abs(one - 1) for one in values) for name, values in apart.items()}
    head = [
        "# Peak memory and load time of .tflite files on this host", "",
        "`python bench/memory.py`: random weights, the longest signature, one thread, the highest of two processes.",
        f"Median error of what the file adds to the process: {errors['memory']:.1f} %; of the load time, which is that"
        f" of two phones and packing as on this processor, {errors['load']:.0f} %.",
        "The process holds its inputs as text too, 4 MB of images. Load times were taken beside other work; the load is"
        " in `memory.json`.", "",
        "| student, activations, signatures | file, MB | peak, MB | predicted | of it the file's | predicted | inside"
        " the interval | load, ms | predicted |",
        "|---|---|---|--:|--:|--:|--:|--:|---|--:|--:|",
    ]  # fmt: skip
    write("memory", figures, "\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    main()
