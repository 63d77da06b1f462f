"""Whether `edgedistill calibrate` brings forecasts nearer: own students here, some as anchors, errors of the rest.

python bench/own_anchors.py [--files DIR]      (ten minutes on one core; DIR keeps the exported files for another run)

Here the rate of a core was measured, so the device is not what a forecast is wrong about. Of a phone specifications are
known: the same once more with every time longer or shorter by a factor, drawn as far off as specifications are.

The weights are random: time does not depend on what was learned. The files are timed by the host's runner in fresh
processes, in turns, and read as `calibrate` reads them: the 10th percentile of the quietest launch.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from itertools import product
from math import exp, log
from pathlib import Path
from statistics import mean, median

from _machine import write
from _size_exports import Case
from memory import job

from edgedistill import catalog
from edgedistill.pipeline.calibrating import undisturbed_ms
from edgedistill.plan.cost import workload
from edgedistill.predict import Anchor, calibrate_device, predict
from edgedistill.runners.host import Timing, measure_many
from edgedistill.specs import QuantScheme
from edgedistill.students import bert, vit

TIMING = Timing(warmup_runs=5, warmup_s=0.1, runs_min=30, time_s=0.4)
LAUNCHES, DRAWS, SEED = 6, 300, 0
OFF = 0.25  # of ln: 18.2 % in the middle, as of `litert cpu float` on a new chip, 0 anchors (results/calibration.md)
SHAPES = (
    (1, 64, 2, 128), (2, 64, 2, 256), (1, 128, 4, 512), (2, 128, 4, 512), (4, 128, 4, 512), (2, 192, 6, 768),
    (2, 256, 4, 1024), (4, 256, 4, 1024), (6, 192, 6, 384), (3, 384, 6, 1536),
)  # fmt: skip
IMAGES = ((2, 128, 4, 96), (3, 192, 6, 96), (2, 256, 4, 160))  # layers, width, heads, side of the image


def cases() -> dict[str, Case]:
    found = {}
    scheme = QuantScheme(activations="dynamic_int8")
    for layers, width, heads, ffn in SHAPES:
        config = bert.Config(
            layers=layers, width=width, heads=heads, ffn=ffn, vocabulary=3000, max_length=64, classes=77
        )
        found[f"bert {layers} x {width}, ffn {ffn}"] = Case("tflite", "bert", config, scheme, (64,))
    for layers, width, heads, side in IMAGES:
        config = vit.Config(
            image_size=side, patch=16, layers=layers, width=width, heads=heads, ffn=4 * width, classes=77
        )
        found[f"vit {layers} x {width}, {side} px"] = Case("tflite", "vit", config, scheme, (1,))
    return found


def errors(
    target, students: dict[str, tuple], anchors: Sequence[str], factor: float
) -> tuple[list[float], list[float], float]:
    """|log| errors of the students that are no anchors, before and after; share of them inside the interval after."""
    students = {name: (work, factor * measured) for name, (work, measured) in students.items()}
    found = [Anchor(workload=students[name][0], measured=students[name][1]) for name in anchors]
    own = calibrate_device(target, found, runtime_build="bench")
    before, after, inside = [], [], []
    for name, (work, measured) in students.items():
        if name in anchors:
            continue
        told = predict(target, work, calibration=own)
        before.append(abs(log(measured / predict(target, work).median)))
        after.append(abs(log(measured / told.median)))
        inside.append(told.low <= measured <= told.high)
    return before, after, mean(inside)


def drawn(names: Sequence[str], count: int, draw: random.Random) -> list[str]:
    """Anchors of different sizes, as a user is asked to take: one from each part of the list, which is by time."""
    return [draw.choice(names[n * len(names) // count : (n + 1) * len(names) // count]) for n in range(count)]


def percent(error: float) -> str:
    return f"{100 * (exp(error) - 1):.1f} %"


def main(folder: Path) -> None:
    target, jobs, works = catalog.load_target("host"), {}, {}
    for name, case in cases().items():
        path = folder / f"{name.replace(' ', '_').replace(',', '')}.tflite"
        jobs[name] = job(case, path, keep=True)
        family = catalog.load_plugin("students", case.family)
        works[name] = workload(family, case.config, case.scheme, case.buckets[-1], file_bytes=path.stat().st_size)
        print(name, flush=True)
    seen = measure_many(jobs, launches=LAUNCHES, timing=TIMING)
    students = {name: (works[name], undisturbed_ms(seen[name])) for name in jobs}
    names = sorted(students, key=lambda name: students[name][1])
    rows, figures = [], {}
    for name in names:
        work, measured = students[name]
        told = predict(target, work)
        off = measured / told.median
        figures[name] = {"measured_ms": measured, "medians_ms": seen[name].launch_medians_ms, "told_ms": told.median}
        rows.append(f"| {name} | {measured:.3f} | {seen[name].latency_p50_ms:.3f} | {told.median:.3f} | x{off:.2f} |")
    lines, draw = [], random.Random(SEED)
    for off, count in product((0.0, OFF), (1, 3, 4, 5)):
        tried = [errors(target, students, drawn(names, count, draw), exp(off * draw.gauss(0, 1))) for _ in range(DRAWS)]
        before, after = ([mean(one[n]) for one in tried] for n in (0, 1))
        better = mean(b > a for b, a in zip(before, after, strict=True))
        inside = mean(one[2] for one in tried)
        label = f"{count} anchors{', speed unknown' if off else ''}"
        figures[label] = {"before": mean(before), "after": mean(after), "better": better, "inside": inside}
        means = f"{percent(mean(before))} | {percent(mean(after))} | {percent(median(after))}"
        lines.append(f"| {'specified' if off else 'measured'} | {count} | {means} | {better:.0%} | {inside:.0%} |")
    head = [
        "# Forecasts of students before and after `edgedistill calibrate`", "",
        f"`python bench/own_anchors.py`: {len(names)} students in dynamic int8 on this host, one thread, {LAUNCHES}"
        f" launches each in turns; {DRAWS} draws of anchors of different sizes; errors of the students that were none.",
        "The machine was shared: the load is in `own_anchors.json`. Read as `calibrate` reads: the 10th percentile of"
        " the quietest launch.", "",
        f"*Specified*: every time longer or shorter by a factor, whose logarithm has a standard deviation of {OFF}.",
        "",
        "| speed of it | anchors | mean error before | after | after, median draw | draws in which it got less |"
        " inside the interval after (80 %) |",
        "|---|--:|--:|--:|--:|--:|--:|", *lines, "",
        "| student | measured, ms | median of all, ms | predicted without anchors, ms | off by |",
        "|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    write("own_anchors", figures, "\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=Path)
    options = parser.parse_args()
    if options.files:
        options.files.mkdir(parents=True, exist_ok=True)
        main(options.files)
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
