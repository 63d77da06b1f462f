"""Static int8, file against frozen student, in steps of the output's grid: every family, format and scheme.

python bench/static_parity.py [--inputs 400] [--real-inputs 24] [--only bert] [--formats coreml] [--frozen NAME=FOLDER]

Random students of 4 layers with weights as large as trained ones, and two real networks: EfficientNet-lite0 as
published, and all-MiniLM-L6-v2 with a random head; `--only` leaves out the others by the beginning of their names.
Ranges are observed on random inputs. `--frozen` adds the student in a bundle's folder `frozen`, which was trained.
For each input, the largest difference of any logit in steps. Each student is recorded when it is done; students and
formats left out keep their recorded figures, and the page says which run a row is of: a run that was killed goes on
with the students that it lacks, `--only`.
ONNX Runtime is asked twice: with its default optimization, and without, where QDQ groups are floats. There the codes
that are not the student's are counted too, all of values between two codes: `ties` raises at any other. Core ML is
asked three times, by the evaluator: the package of float32 in float32, the package of fp16 in float32, and the latter
with its float32 constants put back in float64.
"""

import argparse
import datetime
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import RESULTS, write
from formats import minilm
from numpy.typing import NDArray

from edgedistill import catalog, coreml, quant
from edgedistill.coreml import Evaluator
from edgedistill.errors import VerificationError
from edgedistill.exporters import onnx
from edgedistill.exporters.coreml.convert import Converter
from edgedistill.exporters.coreml.proof import unrounded
from edgedistill.quant import FrozenStudent
from edgedistill.specs import QuantScheme, WeightGrid
from edgedistill.students import bert, cnn, part, vit
from edgedistill.students.cnn.load import load, locate

BUCKETS = (8, 16)
PLAIN = "onnx, not optimized"
STAGES = [(1, 3, 1, 8, 1), (3, 5, 2, 12, 2), (6, 3, 2, 16, 2)]
CONFIGS = {
    "bert": bert.Config(layers=4, width=64, heads=4, ffn=128, vocabulary=500, max_length=32, classes=10),
    "vit": vit.Config(image_size=32, patch=8, layers=4, width=64, heads=4, ffn=128, classes=10),
    "cnn": cnn.Config.model_validate({
        "image_size": 48, "stem_width": 8, "head_width": 64, "classes": 10,
        "stages": [dict(zip(cnn.Stage.model_fields, row, strict=True)) for row in STAGES],
    }),
}  # fmt: skip
ABOUT = """\
For each input the largest difference of any logit; one thread, random inputs. `bench/static_parity.py`.

What LiteRT and ONNX Runtime compute is the student's own codes, and so is a Core ML package of precision float32, which
spells out the student's own steps. One of float16 divides by a scale where the student multiplies with its reciprocal,
and adds floats: a value that lies between two codes to 1e-6 of a step takes the other one now and then, in float64 too
(a large image has millions of values), and what ships rounds to fp16 beside. In float64 its graph answers what the
student's formulas do in float64: every export is held to 1e-7 of that.

Not optimized, ONNX Runtime computes QDQ groups as floats. A value that lies between two codes, to what float32 is off,
then takes the other code now and then, and layers behind it make more of that; all other codes are the student's.

`trained bert` has 2 layers of width 64, from a build of `tiny.toml` with these sizes and more steps."""
Answer = Callable[[str, dict[str, NDArray[Any]]], NDArray[Any]]


def random_network(family: str, config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = part(family, "module").build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # as after training
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
            else:
                inputs = 1 if parameter.dim() == 1 else parameter[0].numel()
                torch.nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else 1.2 / inputs**0.5)
    return model


def students(frozen: list[str]) -> Iterator[tuple[str, Callable[[], FrozenStudent]]]:
    for item in frozen:
        name, _, folder = item.partition("=")
        yield name, partial(FrozenStudent.load, Path(folder))
    for bits in (8, 4):
        scheme = QuantScheme(
            weights=WeightGrid(bits=bits), head=WeightGrid(bits=bits), activations="static_int8"
        )  # fmt: skip
        for family, config in CONFIGS.items():
            network = random_network(family, config)
            yield f"{family}, random, int{bits}", partial(observed, network, family, config, scheme, 24)
    real = QuantScheme(activations="static_int8")
    yield "EfficientNet-lite0, int8", lambda: observed(load(locate()), "cnn", cnn.EFFICIENTNET_LITE0, real, 12)
    model, config = minilm(32)
    yield "MiniLM, int8", lambda: observed(model, "bert", config, real, 24)


def observed(model: torch.nn.Module, family: str, config: Any, scheme: QuantScheme, batches: int) -> FrozenStudent:
    """The student, its ranges observed on random inputs."""
    plugin, random = catalog.load_plugin("students", family), np.random.default_rng(1)
    quant.prepare(model, scheme, plugin.tensors(config)).train()
    with torch.no_grad():
        for signature in itertools.islice(itertools.cycle(plugin.signatures(config, BUCKETS)), batches):
            model(*(torch.from_numpy(value) for value in plugin.sample(config, signature, random).values()))
    quant.freeze_observers(model)
    return quant.freeze(model.eval(), family, config, scheme, {})


def runtimes(frozen: FrozenStudent, work: Path, formats: list[str]) -> Iterator[tuple[str, Answer]]:
    """Each way to compute the student's files, by name."""
    for name in catalog.load_plugin("students", frozen.family).FORMATS:
        exporter = catalog.load_plugin("exporters", name)
        if formats and name not in formats:
            continue
        if "static_int8" not in catalog.constants("exporters", name)["HOLDS"]["activations"]:
            continue
        if name == "coreml":
            yield from packages(frozen, work)
            continue
        path = work / f"student{exporter.SUFFIX}"
        exporter.export(frozen, BUCKETS, path)
        runner = exporter.load(path)
        entries = set(runner.signatures)

        def ran(entry: str, feeds: Any, runner: Any = runner, entries: set[str] = entries) -> NDArray[Any]:
            out: NDArray[Any] = runner.run(entry if entry in entries else min(entries), feeds)["logits"]
            return out

        yield {"onnx": "onnx, default optimization"}.get(name, name), ran
        if name == "onnx":
            yield PLAIN, unoptimized(path)


def packages(frozen: FrozenStudent, work: Path) -> Iterator[tuple[str, Answer]]:
    exporter = catalog.load_plugin("exporters", "coreml")
    for precision in ("float32", "float16"):
        path = work / f"{precision}.mlpackage"
        try:
            exporter.export(frozen, BUCKETS, path, precision=precision)
        except VerificationError as error:
            print(f"{precision} is refused: {error}", flush=True)
            yield f"coreml, {precision}: refused", refused
            continue
        yield f"coreml, {precision} in float32", computed(Evaluator(coreml.load(path), "fp32"))
    raw = Converter(frozen, frozen.signatures(BUCKETS)).write(work)
    program = unrounded(coreml.load(raw.path), raw.floats)
    yield "coreml, float16 with float32 constants in float64", computed(Evaluator(program, "fp64"))


def refused(entry: str, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """No file, no answer."""
    return np.full((), np.nan)


def computed(evaluator: Evaluator) -> Answer:
    return lambda _, feeds: next(iter(evaluator.predict(feeds).values()))


def unoptimized(path: Path) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda _, feeds: session.run(None, feeds)[0]


def inputs_of(frozen: FrozenStudent, count: int) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    random = np.random.default_rng(5)
    for signature in itertools.islice(itertools.cycle(frozen.signatures(BUCKETS)), count):
        yield signature.name, frozen.sample(signature, random)


def steps_between(frozen: FrozenStudent, answers: dict[str, Answer], inputs: int) -> dict[str, list[int]]:
    """For each input the largest difference of any logit from the frozen student's, in steps."""
    module = frozen.to_module()
    step = frozen.ranges["classifier"][1].scale
    found: dict[str, list[int]] = {name: [] for name in answers}
    for entry, feeds in inputs_of(frozen, inputs):
        with torch.no_grad():
            ours = module(*(torch.from_numpy(value) for value in feeds.values())).logits.numpy()
        for name, answer in answers.items():
            away = np.abs(answer(entry, feeds) - ours).max()
            found[name] += [int(np.rint(away / step))] if np.isfinite(away) else []
    return found


def ties_of(frozen: FrozenStudent, path: Path, inputs: int) -> list[float]:
    """How far the value of each code that is not the student's is from the middle of two, in steps.

    Raises:
        VerificationError: if a code is another for any other reason.
    """
    seen = onnx.ties(frozen, path, (feeds for _, feeds in inputs_of(frozen, inputs)))
    return [tie.distance for of_input in seen for tie in of_input]


def codes_of(frozen: FrozenStudent, inputs: int) -> int:
    """How many codes all layers answer for these inputs."""
    module, counts = frozen.to_module(), list[int]()
    for place in frozen.layer_grids(frozen.build()):
        module.get_submodule(place).register_forward_hook(lambda layer, given, out: counts.append(out.numel()))
    for _, feeds in inputs_of(frozen, inputs):
        with torch.no_grad():
            module(*(torch.from_numpy(value) for value in feeds.values()))
    return sum(counts)


def rows_of(label: str, found: dict[str, Any]) -> Iterator[str]:
    for name, item in sorted(found.items()):
        if "summary" in item:
            yield f"| {label} | {name} | {item['run']} | {' | '.join(item['summary'])} |"
            continue
        if not item["steps"]:
            yield f"| {label} | {name} | {item['run']} | | | | | | |"
            continue
        seen = np.array(item["steps"])
        p99, beyond = np.quantile(seen, 0.99), [(seen > limit).mean() for limit in (0, 1)]
        yield (
            f"| {label} | {name} | {item['run']} | {len(seen)} | {np.median(seen):g} | {p99:.3g} | {seen.max()} "
            f"| {beyond[0]:.2%} | {beyond[1]:.2%} |"
        )


def tie_rows(figures: dict[str, dict[str, Any]]) -> Iterator[str]:
    for label, found in sorted(figures.items()):
        item = found.get(PLAIN, {})
        if "ties" in item:
            farthest = f"{max(item['ties']):.1e}" if item["ties"] else ""
            yield f"| {label} | {len(item['steps'])} | {item['codes']} | {len(item['ties'])} | {farthest} |"


def main(inputs: int, real_inputs: int, only: list[str], formats: list[str], folders: list[str]) -> None:
    torch.set_num_threads(1)
    recorded = RESULTS / "static_parity.json"
    figures: dict[str, dict[str, Any]] = {}
    runs: dict[str, str] = {}
    if (only or formats) and recorded.exists():
        document = json.loads(recorded.read_text(encoding="utf-8"))
        figures, runs = document["figures"], document["runs"]
    run = max((chr(ord(name) + 1) for name in runs if name.isalpha()), default="a")
    options = "".join(f" --{k} {' '.join(v)}" for k, v in {"only": only, "formats": formats}.items() if v)
    now = datetime.datetime.now(datetime.UTC)
    runs[run] = f"{now:%Y-%m-%d %H:%M} UTC, --inputs {inputs} --real-inputs {real_inputs}{options}"
    for label, make in students(folders):
        if only and not label.startswith(tuple(only)):
            continue
        frozen = make()
        with tempfile.TemporaryDirectory() as work:
            answers = dict(runtimes(frozen, Path(work), formats))
            count = real_inputs if label.startswith(("Eff", "MiniLM")) else inputs
            found: dict[str, Any] = {
                name: {"run": run, "steps": steps} for name, steps in steps_between(frozen, answers, count).items()
            }
            if PLAIN in found:
                found[PLAIN]["ties"] = ties_of(frozen, Path(work) / "student.onnx", count)
                found[PLAIN]["codes"] = codes_of(frozen, count)
        figures[label] = {**(figures.get(label, {}) if formats else {}), **found}
        record(figures, runs)  # each may take minutes


def record(figures: dict[str, dict[str, Any]], runs: dict[str, str]) -> None:
    rows = [row for label, found in sorted(figures.items()) for row in rows_of(label, found)]
    shown = {item["run"] for found in figures.values() for item in found.values()}
    head = [
        "# Static int8: files against the frozen student, in steps of the output",
        "",
        *ABOUT.splitlines(),
        "",
        "| student | computed by | run | inputs | median | p99 | max | share > 0 | share > 1 |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    between = [
        "",
        "Codes of all layers, with groups as floats: how many are not the student's, and how far their values are from",
        "the middle of two codes at most, in steps.",
        "",
        "| student | inputs | codes | another | farthest |",
        "|---|--:|--:|--:|--:|",
    ]
    tail = ["", "Runs:", *(f"- {run}: {told}" for run, told in sorted(runs.items()) if run in shown)]
    page = "\n".join([*head, *rows, *between, *tie_rows(figures), *tail])
    write("static_parity", {"runs": runs, "figures": figures}, page + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=400)
    parser.add_argument("--real-inputs", type=int, default=24)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--formats", nargs="*", default=[])
    parser.add_argument("--frozen", nargs="*", default=[])
    arguments = parser.parse_args()
    main(arguments.inputs, arguments.real_inputs, arguments.only, arguments.formats, arguments.frozen)
