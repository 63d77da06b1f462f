"""Confront the predictor with measurements that were published elsewhere and that no fit has seen.

python bench/unseen.py
"""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from edgedistill.predict import DeviceSpecs, Forecast, LlmWorkload, Workload, predict, resolve
from edgedistill.predict.latency import class_name

DATA, RESULTS = Path(__file__).parent / "data" / "unseen", Path(__file__).parent / "results"
HEAD = """# On measurements that no fit has seen

`python bench/unseen.py` makes this page. `bench/data/unseen` holds measurements that others published, each with its
source. None of them was in the predictor's data when they were collected, or it stood there without features, so that
no fit could use it (the source says so). `latency.csv` names a device and a model; models are described by features
alone (`models.csv`: traced, or the figures of the model's own page), those of ncnn's own benchmark by name; devices
that are in no table by their specifications (`devices.csv`). `llm.csv` describes models by their parameters alone. A
device is known by *specifications* where no row of its chip is in the calibration.

*First* is what the predictor said when it met the rows, before anything was changed for what they showed (`first` in
the files; of Rockchip's runtime it knew no name, and was asked for ONNX). *Now* is what it says today.

There are two batches. **Batch 1** ({batch_1} rows outside of the calibration) was met first; what it showed was mended,
so its *now* is a little too good. {inside} more of its rows were then added to the calibration, `part` = `calibration`
in the files: of those, *now* is no proof, and they stand in the last table for *first* alone. Some filled a gap (a
class of few models or chips); those of language models, all but a mixture of experts', went there when batch 2 was
there to judge by. **Batch 2** ({batch_2} rows) was collected after all mends for batch 1, without asking the
predictor, and confronted with it once: its *first* is the honest figure. Its rows are of models, phones and boards
whose rows are absent from the calibration, most of them from sources that it has other rows of; 197 are seven models
on Qualcomm's NPUs.

Left out: figures that contradict each other (a phone with 32 tokens/s on one page and 9.8 on another of one author; a
board of eight cores with the very times of a Raspberry Pi 1) or physics (62 tokens/s of a 3 B
model in 4 bits on an A17 Pro: twice its memory's bandwidth; ShuffleNet v2 at 1.6 times the peak of a core, so not of
the usual size), rates without a chip, times on a CPU whose page does not say the threads and whose runtime has several
usual ones, times with the decoding of a picture in them, and second copies of one job.

What the first meeting of batch 1 showed, and was mended: NPUs of Rockchip and Coral were taken as Qualcomm's of as
many TOPS, six times too slow; Apple's cores before A14 counted a third too little; a bandwidth that was not stated was
taken as a phone's, so boards with small cores decoded eight times too fast; Paddle's class had two models. llama.cpp
reads prompts three to four times as fast as was told on CPUs with dot products and no matrix instructions, in q4_0
since the end of 2024 and in other quantizations since that of 2025, as its older builds, which the rows are of, did
not. A build's date in `runtime` now tells; q8_0 and q4_k_m without one are taken half way, which the five rows here, of
older builds, were told better without (0.9 to 1.8 of measured / predicted then, 0.5 now). A prompt's arithmetic on an
NPU takes as long in w8a8 as in w4a16; it was told 2.7 times slower, as no row of the calibration has 8 bits there.

What batch 1 showed and still stands. Swin on Qualcomm's NPU takes 1.6 times what is told, and 1.4 times where the
layers of the compiled graph are given: cutting and shifting windows moves numbers that no feature counts. ncnn of 2020
on a Raspberry Pi 3 is 1.5 (float) to 2.6 times (int8) slower than that of today. Jetson's GPUs decode 1.7 times as fast
as phones' of their bandwidth. The Edge TPU of Pixel 6 is 1.5 times slower than that of Pixel 8, the only one with rows.
YOLO v6 and v7 on Rockchip's NPUs take 0.6 of what is told from their MACs and parameters alone.

What batch 2 showed at its first meeting (median of measured / predicted), and was mended by facts of the chips. The
Neural Engine of an iPhone 15 Pro: 1.46 (5 rows), as its 35 TOPS are of int8, where older chips state those of fp16. An
A35: 2.0 (3), and A75s likewise in rows of the calibration: half of the peak that was counted for them is there. A11,
A12, Snapdragon 845 and Xavier have half precision and no dot products, and int8 was told as if they had. f16 in
llama.cpp's prompts: 0.1 (1), told as q8_0, though it takes four times as long there and on Raspberry Pis. Galaxy S24
and a QCS6490 in w8a8: 0.59 and 0.43 (10); the line by TOPS was bent by a Snapdragon 865, whose NPU has no matrix unit.

What it showed and still stands. Galaxy S24's NPU in float and w8a16, told from specifications: 0.79 (22 rows); the line
by TOPS and bandwidth is as slow on the chip of the year before, which its own rows correct.
Galaxy S25's in float, told from a reference board of a year earlier: 0.77 (19). Core ML on an iPhone 12 runs MobileNet
v3, PVT v2 and EfficientViT of 512 pixels 5 to 9 times slower than told: parts of them leave the unit. ncnn of 2020 in
int8 on a Snapdragon 855+: 1.8 (9; its dot products came later). ncnn on that chip's GPU: 0.44 (16), as nothing that a
device states tells the speed of its GPU (peak rates of 30 GPUs, recalled, told no more than what is used: a middle
error of 1.9 times beside 1.7); so too llama.cpp on the GPU of a PC: 0.28 (3). LiteRT's GPU on ConvNeXt: 0.4 (2).
llama.cpp's prompts on two small phone chips: 0.5 (6), in builds whose age is not stated.

"""
COLUMNS = (
    "class", "device known by", "rows", "devices", "models", "MdAPE %, first", "now", "measured / predicted, first",
    "now", "within x1.5 %, first", "now", "within x2 %, first", "now", "80% interval covers %, first", "now",
    "high / low, first", "now",
)  # fmt: skip


class Met(NamedTuple):
    """One row: forecasts of then and now, as median, low and high."""

    row: Mapping[str, str]
    kind: str
    measured: float
    then: tuple[float, float, float]
    now: tuple[float, float, float]
    spec_only: bool


def read(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def device_of(name: str, devices: Mapping[str, Mapping[str, str]]) -> str | DeviceSpecs:
    row = devices.get(name)
    if row is None:
        return name
    numbers = {key: float(row[key]) for key in ("memory_bandwidth_gb_per_s", "npu_int8_tops") if row[key]}
    return DeviceSpecs(name=name, soc=row["soc"], cpu=row["cpu"], **numbers)


def workload_of(row: Mapping[str, str], models: Mapping[str, Mapping[str, str]]) -> Workload:
    run: dict[str, Any] = {key: row[key] for key in ("runtime", "unit", "precision")}
    run["threads"] = int(row["threads"] or 1)
    if row["model"].startswith("ncnn:"):  # a model of ncnn's own benchmark, on a board that has not run it
        return Workload(model=row["model"].removeprefix("ncnn:"), **run)
    model = models[row["model"]]
    kinds = {key: model[key] == "1" for key in ("transformer", "soft_ops")}
    return Workload.from_row(model, **kinds, **run)


def meet() -> list[Met]:
    devices = {row["device"]: row for row in read("devices.csv")}
    models = {row["model"]: row for row in read("models.csv")}
    found = []
    for row in read("latency.csv"):
        device, work = device_of(row["device"], devices), workload_of(row, models)
        told = predict(device, work)
        kind = class_name(resolve(device), work)
        found.append(_met(row, kind, float(row["ms"]), told))
    for row in read("llm.csv"):
        active = float(row["active_params_b"]) if row["active_params_b"] else None
        work_llm = LlmWorkload(
            params_b=float(row["params_b"]),
            active_params_b=active,
            quant=row["quant"],
            backend=row["backend"],
            runtime=row["runtime"],
            prompt_tokens=int(row["prompt_tokens"]),
        )
        told = predict(device_of(row["device"], devices), work_llm, f"{row['phase']}_tokens_per_s")
        found.append(_met(row, f"llm {row['phase']} {row['backend']}", float(row["tokens_per_s"]), told))
    return found


def _met(row: Mapping[str, str], kind: str, measured: float, told: Forecast) -> Met:
    then = tuple(float(row[key]) for key in ("first", "first_low", "first_high"))
    return Met(row, kind, measured, then, (told.median, told.low, told.high), _by_specifications(told))  # type: ignore[arg-type]


def _by_specifications(told: Forecast) -> bool:
    """Whether no row of the chip told the speed; a named model that was measured elsewhere is of another level."""
    return told.level == "spec only" or "speed from specifications" in told.method


def judge(met: Sequence[Met], which: str) -> dict[str, float]:
    """Errors, bias and coverage of the forecasts of `then` or `now`."""
    forecasts = [getattr(one, which) for one in met]
    away = [log(one.measured / told[0]) for one, told in zip(met, forecasts, strict=True)]
    inside = [told[1] <= one.measured <= told[2] for one, told in zip(met, forecasts, strict=True)]
    share = 100 / len(met)
    return {
        "mdape": round(100 * median(abs(exp(-one) - 1) for one in away), 1),
        "ratio": round(exp(median(away)), 2),
        "within_1.5x": round(share * sum(abs(one) <= log(1.5) for one in away)),
        "within_2x": round(share * sum(abs(one) <= log(2) for one in away)),
        "coverage_80": round(share * sum(inside)),
        "width": round(median(told[2] / told[1] for told in forecasts), 1),
    }


def by_batch(met: Sequence[Met]) -> dict[str, list[Met]]:
    found: dict[str, list[Met]] = {}
    for one in met:
        found.setdefault(one.row["batch"], []).append(one)
    return found


def groups(met: Sequence[Met]) -> list[dict[str, Any]]:
    split: dict[tuple[str, str], list[Met]] = defaultdict(list)
    for one in met:
        split[one.kind, "specifications" if one.spec_only else "its chip's rows"].append(one)
    return [_figure(kind, known, rows) for (kind, known), rows in sorted(split.items())]


def _figure(kind: str, known: str, rows: Sequence[Met]) -> dict[str, Any]:
    return {
        "class": kind,
        "known_by": known,
        "rows": len(rows),
        "devices": len({one.row["device"] for one in rows}),
        "models": len({one.row["model"] for one in rows}),
        "first": judge(rows, "then"),
        "now": judge(rows, "now"),
    }


def together(met: Sequence[Met]) -> list[dict[str, Any]]:
    """All rows, those of vision and encoders, and those of language models, however the device is known."""
    parts = {"all": met, "vision and encoders": [one for one in met if not one.kind.startswith("llm")]}
    parts["language models"] = [one for one in met if one.kind.startswith("llm")]
    return [_figure(name, "either", rows) for name, rows in parts.items()]


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---|---|{'--:|' * (len(COLUMNS) - 2)}"]
    for one in figures:
        cells = [one[key] for key in ("class", "known_by", "rows", "devices", "models")]
        cells += [one[when][key] for key in one["now"] for when in ("first", "now")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def worst(met: Sequence[Met], count: int = 15) -> str:
    lines = [
        "| device | model | class | measured | predicted now | interval | source |",
        "|---|---|---|--:|--:|--:|---|",
    ]
    for one in sorted(met, key=lambda one: -abs(log(one.measured / one.now[0])))[:count]:
        told = [f"{value:.3g}" for value in (one.measured, one.now[0])]
        ends = f"{one.now[1]:.3g} to {one.now[2]:.3g}"
        cells = (one.row["device"], one.row["model"], one.kind, *told, ends, one.row["source"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    met = meet()
    outside = [one for one in met if one.row["part"] == "outside"]
    inside = [one for one in met if one.row["part"] != "outside"]
    batches = by_batch(outside)
    figures: dict[str, Any] = {
        "outside": {name: groups(rows) for name, rows in batches.items()},
        "together": {name: together(rows) for name, rows in batches.items()},
        "calibration": groups(inside),
    }
    text = HEAD.format(inside=len(inside), **{f"batch_{name}": len(rows) for name, rows in batches.items()})
    for name in batches:
        text += f"## Outside of the calibration: batch {name}\n\n"
        text += table([*figures["together"][name], *figures["outside"][name]]) + "\n"
    text += "## Added to the calibration since\n\n" + table(figures["calibration"])
    for name, rows in batches.items():
        text += f"\n## The worst of batch {name}\n\nMilliseconds, or tokens per second.\n\n" + worst(rows)
    (RESULTS / "unseen.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "unseen.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
