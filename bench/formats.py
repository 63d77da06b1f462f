"""What an export costs beside the bare converter: all-MiniLM-L6-v2 as a student, in every format.

python bench/formats.py [--repeats 3] [--memory]

The bare converter writes a float file of the same network and does nothing else. Ours writes integer codes, which is
compared with that; then it reads them back, compares every number with the student, and runs the file, which is
reported beside it. Both in one process, interleaved, in seconds of the processor. Peak memory does not depend on how
busy a machine is: `--repeats 0 --memory` measures it alone, beside the seconds that were recorded, and without
`--memory` the recorded peaks stay.
"""

import argparse
import contextlib
import functools
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _machine import RESULTS, machine, write
from tokenizers import Tokenizer, models

from edgedistill import catalog, quant
from edgedistill.exporters._quiet import silenced
from edgedistill.quant import FrozenStudent
from edgedistill.specs import QuantScheme
from edgedistill.store import bytes_of
from edgedistill.students import bert
from edgedistill.students.bert.layers import whole_teacher
from edgedistill.students.bert.vocabulary import Trimmed
from edgedistill.teachers import _network as networks
from edgedistill.teachers import locate

LENGTH, CLASSES = 32, 77
FORMATS = ("tflite", "onnx", "coreml", "gguf")


def minilm(max_length: int) -> tuple[torch.nn.Module, bert.Config]:
    """The encoder with a random head of 77 classes."""
    located = locate(catalog.load_profile("default").teacher.sources)
    encoder = networks.load_body(located, classifier=False)
    about = encoder.config
    config = bert.Config(
        layers=about.num_hidden_layers,
        width=about.hidden_size,
        heads=about.num_attention_heads,
        ffn=about.intermediate_size,
        vocabulary=about.vocab_size,
        max_length=max_length,
        classes=CLASSES,
    )
    torch.manual_seed(0)
    pieces = range(config.vocabulary)
    trimmed = Trimmed(Tokenizer(models.WordPiece()), tuple((n,) for n in pieces), tuple(1 for _ in pieces))
    return whole_teacher(config, encoder, trimmed), config


def bare_tflite(model: torch.nn.Module, signature: Any, out: Path) -> None:
    import litert_torch

    from edgedistill.exporters.tflite.graph import add_signatures

    add_signatures(litert_torch, model, [signature]).convert().export(str(out))


class Logits(torch.nn.Module):
    """The network with plain tensors in and out, as converters want it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, attention_mask).logits


def bare_onnx(model: torch.nn.Module, signature: Any, out: Path) -> None:
    inputs = tuple(torch.ones(port.shape, dtype=torch.int32) for port in signature.inputs)
    torch.onnx.export(Logits(model).eval(), inputs, str(out), dynamo=True, opset_version=21, external_data=False)


def bare_coreml(model: torch.nn.Module, signature: Any, out: Path) -> None:
    import coremltools as ct

    inputs = tuple(torch.ones(port.shape, dtype=torch.int32) for port in signature.inputs)
    traced = torch.jit.trace(Logits(model).eval(), inputs, check_trace=False, strict=False)
    types = [ct.TensorType(name=p.name, shape=p.shape, dtype=np.int32) for p in signature.inputs]
    converted = ct.convert(
        traced, inputs=types, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17,
        outputs=[ct.TensorType(name="logits", dtype=np.float32)], skip_model_load=True,
    )  # fmt: skip
    converted.save(str(out))


def bare_gguf(model: torch.nn.Module, signature: Any, out: Path) -> None:
    """There is no converter on the registries: the gguf library's own quantizer and writer, tensor by tensor."""
    import gguf

    writer = gguf.GGUFWriter(str(out), "bert")
    for name, value in model.state_dict().items():
        values = value.float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


BARE: dict[str, Callable[[torch.nn.Module, Any, Path], None]] = {
    "tflite": bare_tflite, "onnx": bare_onnx, "coreml": bare_coreml, "gguf": bare_gguf
}  # fmt: skip


class Spent(NamedTuple):
    """Seconds of one conversion: of the processor, and of the clock, which is longer where others compute too."""

    processor: float
    clock: float


def timed(run: Callable[[], object]) -> Spent:
    gc.collect()
    start = time.process_time(), time.monotonic()
    with silenced(), torch.no_grad():
        run()
    return Spent(time.process_time() - start[0], time.monotonic() - start[1])


@contextlib.contextmanager
def proof_of(exporter: Any) -> Iterator[list[Spent]]:
    """Time what the exporter does after the file is written: reading it back, comparing, executing."""
    steps = ["_prove"] if hasattr(exporter, "_prove") else ["verify", "prove"]
    own, spent = {name: getattr(exporter, name) for name in steps}, []

    def noted(name: str, *arguments: Any) -> None:
        start = time.process_time(), time.monotonic()
        own[name](*arguments)
        spent.append(Spent(time.process_time() - start[0], time.monotonic() - start[1]))

    for name in steps:
        setattr(exporter, name, functools.partial(noted, name))
    try:
        yield spent
    finally:
        for name in steps:
            setattr(exporter, name, own[name])


class Case:
    """MiniLM in one format, by its bare converter and by ours."""

    def __init__(self, name: str, model: torch.nn.Module, frozen: FrozenStudent, work: Path) -> None:
        self.name, self.model, self.frozen, self.work = name, model, frozen, work
        self.exporter = catalog.load_plugin("exporters", name)
        self.signature = frozen.signatures([LENGTH])[0]

    def out(self, who: str) -> Path:
        return self.work / f"{who}{self.exporter.SUFFIX}"

    def bare(self) -> dict[str, Spent]:
        return {"bare": timed(lambda: BARE[self.name](self.model, self.signature, self.out("bare")))}

    def ours(self) -> dict[str, Spent]:
        with proof_of(self.exporter) as proofs:
            whole = timed(lambda: self.exporter.export(self.frozen, [LENGTH], self.out("ours")))
        proof = Spent(*(sum(part) for part in zip(*proofs, strict=True)))
        export = Spent(whole.processor - proof.processor, whole.clock - proof.clock)
        return {"export": export, "proof": proof}


def cases(work: Path) -> list[Case]:
    model, config = minilm(LENGTH)
    frozen = quant.freeze(model, "bert", config, QuantScheme(), {})
    plain = frozen.build()
    return [Case(name, plain, frozen, work) for name in FORMATS]


def peak_mb(name: str, who: str) -> float:
    """Peak memory of a process that does this one conversion, the imports and the model included."""
    command = [sys.executable, __file__, "--only", f"{name}:{who}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def only(name: str, who: str, work: Path) -> None:
    (case,) = (case for case in cases(work) if case.name == name)
    getattr(case, who)()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def main(repeats: int, memory: bool, work: Path) -> None:
    torch.set_num_threads(1)
    seen: dict[str, dict[str, list[Spent]]] = {name: {"bare": [], "export": [], "proof": []} for name in FORMATS}
    found = cases(work)
    for attempt in range(repeats + 1):  # the first warms imports and is left out
        for case in found:
            runs = [case.bare, case.ours]
            for run in runs if attempt % 2 else runs[::-1]:
                for what, spent in run().items():
                    if attempt:
                        seen[case.name][what].append(spent)
    sizes = {case.name: {who: bytes_of(case.out(who)) / 1e6 for who in ("bare", "ours")} for case in found}
    figures = {"seconds": seen, "sizes_mb": sizes, **({"peak_mb": peaks()} if memory else recorded_peaks())}
    write("formats", figures, table(seen, sizes, figures["peak_mb"], repeats))


def peaks() -> dict[str, dict[str, float]]:
    return {name: {who: peak_mb(name, who) for who in ("bare", "ours")} for name in FORMATS}


def recorded_peaks() -> dict[str, Any]:
    document = recorded_figures()
    return {"peak_mb": document["peak_mb"], "peak_machine": document.get("peak_machine", document["machine"])}


def recorded_figures() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / "formats.json").read_text(encoding="utf-8"))
    return document


def memory_alone() -> None:
    recorded = recorded_figures()
    figures = recorded | {"peak_mb": peaks(), "peak_machine": machine()}
    repeats = len(recorded["seconds"][FORMATS[0]]["bare"])
    seen = {n: {what: [Spent(*pair) for pair in v] for what, v in i.items()} for n, i in recorded["seconds"].items()}
    write("formats", figures, table(seen, recorded["sizes_mb"], figures["peak_mb"], repeats))


def table(seen: Any, sizes: Any, peaks: Any, repeats: int) -> str:
    medians = {
        name: {what: float(np.median([spent.processor for spent in times])) for what, times in item.items()}
        for name, item in seen.items()
    }
    medians["all"] = {what: sum(item[what] for item in medians.values()) for what in ("bare", "export", "proof")}
    rows = []
    for name, item in medians.items():
        whole = item["export"] + item["proof"]
        numbers = f"{item['bare']:.2f} | {item['export']:.2f} | {item['export'] / item['bare']:.2f} "
        numbers += f"| {item['proof']:.2f} | {whole / item['bare']:.2f}"
        pairs = [f"{g[name]['bare']:.0f} | {g[name]['ours']:.0f}" if name in g else " | " for g in (peaks, sizes)]
        ratio = f"{peaks[name]['ours'] / peaks[name]['bare']:.2f}" if name in peaks else ""
        rows.append(f"| {name} | {numbers} | {pairs[0]} | {ratio} | {pairs[1]} |")
    head = [
        "# Export of all-MiniLM-L6-v2, one signature of 32 tokens",
        "",
        f"Medians of {repeats}, interleaved; seconds of the processor on one thread, imports warm, the float network",
        "in memory. Ours is int8 per channel: export writes the file; proof reads it back, compares every number with",
        "the student, and executes it. Peak memory is of a process of its own for one conversion, the student, imports",
        "and our proof included.",
        "",
        "| format | bare converter, s | export, s | export ÷ bare | proof, s | with proof ÷ bare "
        "| bare peak, MB | our peak, MB | our peak ÷ bare | bare file, MB | our file, MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peak memory too, in eight more processes")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.only:
            only(*given.only.split(":"), Path(folder))
        elif given.memory and not given.repeats:
            memory_alone()
        else:
            main(given.repeats, given.memory, Path(folder))
