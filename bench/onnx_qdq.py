"""A static student's .onnx beside what ONNX Runtime's own static quantizer makes of the same float network.

python bench/onnx_qdq.py [FAMILY …] [--calls 300]

Both with QDQ, int8 weights per channel, and ranges of the same inputs. Latency in ONNX Runtime with its default
optimization, one thread, calls in turns. The graph that ONNX Runtime makes of a file tells how many layers are products
of integers in it and how many were left as floats. Answers are compared with the student in torch, whose weights and
ranges ours are, and with the float network, over inputs that no range was taken of.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from _machine import write
from formats import Logits
from numpy.typing import NDArray
from onnxruntime import quantization
from static_parity import CONFIGS, random_network

from edgedistill import catalog, quant
from edgedistill.exporters import onnx as exporter
from edgedistill.exporters._proof import answer
from edgedistill.exporters._quiet import silenced
from edgedistill.specs import QuantScheme

LENGTH, RANGED, COMPARED = 64, 16, 100
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"width": 256, "ffn": 1024, "max_length": LENGTH},
    "vit": {"image_size": 64, "width": 192, "heads": 3, "ffn": 768},
    "cnn": {"image_size": 96},
}
INTEGER = ("QGemm", "QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger")
FLOAT = ("Gemm", "FusedGemm", "Conv", "FusedConv", "MatMul", "FusedMatMul")
WAYS = ("float", "theirs", "ours")


class Samples(quantization.CalibrationDataReader):
    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self.left = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


def float_file(network: torch.nn.Module, feeds: dict[str, Any], out: Path) -> None:
    whole = Logits(network) if len(feeds) > 1 else network
    inputs = tuple(torch.from_numpy(value) for value in feeds.values())
    with silenced(), torch.no_grad():
        program = torch.onnx.export(
            whole.eval(), inputs, dynamo=True, opset_version=21, input_names=[*feeds], verbose=False
        )
        assert program is not None
        program.save(str(out))


def session(path: Path) -> tuple[Any, dict[str, int]]:
    """The file as an app loads it, and what is in the graph that the runtime has then."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    counts = {"integer products": sum(map(kinds.count, INTEGER)), "float products": sum(map(kinds.count, FLOAT))}
    return made, {**counts, "nodes": len(kinds)}


def row(family: str, calls: int, work: Path) -> dict[str, Any]:
    config = CONFIGS[family].model_copy(update=SIZES[family])
    plugin, network = catalog.load_plugin("students", family), random_network(family, config).eval()
    (signature,) = plugin.signatures(config, (LENGTH,))
    random = np.random.default_rng(0)
    feeds = [plugin.sample(config, signature, random) for _ in range(RANGED + COMPARED)]
    float_file(network, feeds[0], work / "float.onnx")
    quantization.quantize_static(
        work / "float.onnx", work / "theirs.onnx", Samples(feeds[:RANGED]), per_channel=True,
        quant_format=quantization.QuantFormat.QDQ, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    with torch.no_grad():
        plain = [network(*(torch.from_numpy(v) for v in given.values())).logits.numpy() for given in feeds[RANGED:]]
    quant.prepare(network, QuantScheme(activations="static_int8"), plugin.tensors(config)).train()
    with torch.no_grad():
        for given in feeds[:RANGED]:
            network(*(torch.from_numpy(value) for value in given.values()))
    quant.freeze_observers(network)
    frozen = quant.freeze(network.eval(), family, config, QuantScheme(activations="static_int8"), {})
    exporter.export(frozen, (LENGTH,), work / "ours.onnx")
    made = {name: session(work / f"{name}.onnx") for name in WAYS}
    seconds = timed({name: run for name, (run, _) in made.items()}, feeds, calls)
    found = {name: [run.run(None, given)[0] for given in feeds[RANGED:]] for name, (run, _) in made.items()}
    student = [answer(frozen.to_module(), given) for given in feeds[RANGED:]]
    return {
        "family": family,
        "seconds": seconds,
        "counts": {name: counts for name, (_, counts) in made.items()},
        "size_mb": {name: (work / f"{name}.onnx").stat().st_size / 1e6 for name in WAYS},
        "away_from_float": {name: away(answers, plain) for name, answers in found.items()},
        "agreement_with_float": {name: agreement(answers, plain) for name, answers in found.items()},
        "equal_to_student": float(
            np.mean([np.array_equal(*pair) for pair in zip(found["ours"], student, strict=True)])
        ),
    }


def timed(made: dict[str, Any], feeds: list[dict[str, Any]], calls: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for call in range(calls):
        for name, run in made.items():
            start = time.perf_counter()
            run.run(None, feeds[call % len(feeds)])
            seconds[name].append(time.perf_counter() - start)
    return seconds


def away(found: list[NDArray[Any]], wanted: list[NDArray[Any]]) -> float:
    """Median of the largest difference of any logit, as a share of the largest logit."""
    largest = max(float(np.abs(logits).max()) for logits in wanted)
    return float(np.median([np.abs(a - b).max() for a, b in zip(found, wanted, strict=True)])) / largest


def agreement(found: list[NDArray[Any]], wanted: list[NDArray[Any]]) -> float:
    return float(np.mean([a.argmax() == b.argmax() for a, b in zip(found, wanted, strict=True)]))


def page(rows: list[dict[str, Any]], calls: int) -> str:
    lines = [
        "# Static students in ONNX Runtime, beside its own static quantizer",
        "",
        f"`bench/onnx_qdq.py`; random students, one thread, medians of {calls} calls in turns. Products, attention's",
        "included, and nodes are those of the graph that ONNX Runtime makes of the file. Answers over",
        f"{COMPARED} inputs: how far logits are from the float network's, of the largest, in the median, and the share",
        "with the same class. Both files were quantized after training.",
        "",
        "| student | file | MB | ms | ÷ theirs | integer products | float products | nodes | away from float "
        "| same class as float |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for it in rows:
        medians = {name: 1e3 * float(np.median(it["seconds"][name])) for name in WAYS}
        for name in WAYS:
            counts, size_mb = it["counts"][name], it["size_mb"][name]
            lines.append(
                f"| {it['family']} | {name} | {size_mb:.3f} | {medians[name]:.2f} "
                f"| {medians[name] / medians['theirs']:.2f} | {counts['integer products']} "
                f"| {counts['float products']} | {counts['nodes']} "
                f"| {it['away_from_float'][name]:.1%} | {it['agreement_with_float'][name]:.0%} |"
            )
    exact = ", ".join(f"{it['family']} {it['equal_to_student']:.0%}" for it in rows)
    return "\n".join([*lines, "", f"Answers of ours that are the frozen student's, bit for bit: {exact}.", ""])


def main(families: list[str], calls: int) -> None:
    torch.set_num_threads(1)
    rows = []
    for family in families:
        with tempfile.TemporaryDirectory() as work:
            rows.append(row(family, calls, Path(work)))
        write("onnx_qdq", {"rows": rows}, page(rows, calls))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*", default=["bert", "vit", "cnn"])
    parser.add_argument("--calls", type=int, default=300)
    arguments = parser.parse_args()
    main(arguments.families, arguments.calls)
