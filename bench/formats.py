"""What an export costs beside the bare converter: all-MiniLM-L6-v2 as a student, in every format.

python bench/formats.py [--repeats 3]

The bare converter writes a float file of the same network and does nothing else. Ours writes integer codes, reads them
back, compares every number with the student, and runs the file. Both in one process, interleaved.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import write
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


def minilm() -> tuple[torch.nn.Module, bert.Config]:
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
        max_length=LENGTH,
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


def timed(run: Callable[[], object]) -> float:
    start = time.monotonic()
    with silenced(), torch.no_grad():
        run()
    return time.monotonic() - start


def main(repeats: int, work: Path) -> None:
    torch.set_num_threads(1)
    model, config = minilm()
    frozen: FrozenStudent = quant.freeze(model, "bert", config, QuantScheme(), {})
    signature = frozen.signatures([LENGTH])[0]
    seen: dict[str, dict[str, list[float]]] = {name: {"bare": [], "ours": []} for name in FORMATS}
    sizes = {}
    for attempt in range(repeats + 1):  # the first warms imports and is left out
        for name in FORMATS:
            exporter = catalog.load_plugin("exporters", name)
            bare, ours = (work / f"{attempt}_{who}{exporter.SUFFIX}" for who in ("bare", "ours"))
            spent = {
                "bare": timed(lambda name=name, bare=bare: BARE[name](frozen.build(), signature, bare)),
                "ours": timed(lambda exporter=exporter, ours=ours: exporter.export(frozen, [LENGTH], ours)),
            }
            sizes[name] = bytes_of(bare) / 1e6, bytes_of(ours) / 1e6
            if attempt:
                for who, seconds in spent.items():
                    seen[name][who].append(seconds)
    medians = {name: {who: float(np.median(times)) for who, times in item.items()} for name, item in seen.items()}
    totals = {who: sum(item[who] for item in medians.values()) for who in ("bare", "ours")}
    rows = [
        f"| {name} | {item['bare']:.1f} | {item['ours']:.1f} | {item['ours'] / item['bare']:.2f} "
        f"| {sizes[name][0]:.1f} | {sizes[name][1]:.1f} |"
        for name, item in medians.items()
    ]
    rows.append(f"| all | {totals['bare']:.1f} | {totals['ours']:.1f} | {totals['ours'] / totals['bare']:.2f} | | |")
    head = [
        "# Export of all-MiniLM-L6-v2, one signature of 32 tokens",
        "",
        f"Medians of {repeats}, one thread, imports warm. Ours: int8 per channel, read back, compared and executed.",
        "",
        "| format | bare converter, s | ours, s | ours ÷ bare | bare file, MB | ours, MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    write("formats", {"seconds": seen, "sizes_mb": sizes}, "\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    with tempfile.TemporaryDirectory() as folder:
        main(parser.parse_args().repeats, Path(folder))
