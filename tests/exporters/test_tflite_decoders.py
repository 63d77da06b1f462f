"""Decoders as .tflite, changed on purpose: each fault is found however large the rounding of the student is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill.errors import VerificationError
from edgedistill.exporters import tflite
from edgedistill.exporters.tflite.decoding import derived_tables
from edgedistill.exporters.tflite.generating import Text
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.proving import prove
from edgedistill.exporters.tflite.reading import names, parse, uses
from edgedistill.exporters.tflite.running import load
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.quant.activations import quantize_rows
from edgedistill.specs import QuantScheme
from edgedistill.students import llama, part

CONFIG = llama.Config(
    architecture="qwen2", layers=3, width=64, heads=4, kv_heads=2, head_width=16, ffn=128, vocabulary=96, max_length=24
)
Made = tuple[FrozenStudent, Path]


def student() -> FrozenStudent:
    """One channel of the stream is 15 times the others, as in trained decoders, so that int8 codes are coarse."""
    torch.manual_seed(0)
    model = part("llama", "module").build(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                nn.init.normal_(parameter, mean=1, std=0.2)
                parameter[7] *= 20
            else:
                nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else 1.2 / parameter.shape[1] ** 0.5)
        for layer in model.layers:
            layer.down.weight[11] *= 15
    return freeze(model, "llama", CONFIG, QuantScheme(), {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    frozen, path = student(), tmp_path_factory.mktemp("decoders") / "model.tflite"
    tflite.export(frozen, (8,), path)
    return frozen, path


def layers(schema: Any, model: Any, path: Path) -> list[dict[str, Any]]:
    """The operators with a weight, by its name, of each entry point."""
    stored = names(model, path)
    return [{use.name: use.operator for use in uses(schema, model, graph, stored)} for graph in model.subgraphs]


def without_bias(schema: Any, model: Any, path: Path) -> None:
    for operators in layers(schema, model, path):
        operator = operators["layers.2.value.weight"]
        operator.inputs = np.append(np.asarray(operator.inputs[:2], np.int32), np.int32(-1))


def swapped(schema: Any, model: Any, path: Path) -> None:
    for operators in layers(schema, model, path):
        first, second = (operators[f"layers.{n}.output.weight"] for n in (0, 1))
        first.inputs[1], second.inputs[1] = int(second.inputs[1]), int(first.inputs[1])


def constant(old: bytes, new: bytes) -> Callable[[Any, Any, Path], None]:
    def change(schema: Any, model: Any, path: Path) -> None:
        found = [buffer for buffer in model.buffers if buffer.data is not None and bytes(buffer.data) == old]
        assert found
        for buffer in found:
            buffer.data = np.frombuffer(new, np.uint8)

    return change


def of(value: float) -> bytes:
    return np.float32(value).tobytes()


def caches_exchanged(schema: Any, model: Any, path: Path) -> None:
    """Each entry point answers the keys of layer 0 as those of layer 1."""
    for signature in model.signatureDefs:
        by_name = {entry.name: entry for entry in signature.outputs}
        first, second = by_name[b"kv_cache_k_0"], by_name[b"kv_cache_k_1"]
        first.tensorIndex, second.tensorIndex = int(second.tensorIndex), int(first.tensorIndex)


SPEEDS = derived_tables(student())[0]
FASTER = SPEEDS * np.where(np.arange(len(SPEEDS)) == 1, np.float32(1.001), np.float32(1))
FAULTS = {
    "a dropped bias": (without_bias, r"layers\.2\.value: "),
    "swapped layers": (swapped, r"the input of layers\.0\.output: "),
    "another epsilon": (constant(of(1e-5), of(3e-5)), r"the input of layers\.0\.query: "),
    "a mask that lets pass": (constant(of(-1e4), of(-5)), r"the input of layers\.\d\.output: "),
    "a rotation 0.1 % too fast": (constant(SPEEDS.tobytes(), FASTER.tobytes()), r"the input of layers\.0\.output: "),
    "exchanged caches": (caches_exchanged, r"kv_cache_k_0, after the layers: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_int8_would_hide_is_found_where_it_is(made: Made, fault: str, tmp_path: Path) -> None:
    frozen, path = made
    change, told = FAULTS[fault]
    schema, model = parse(path)
    change(schema, model, path)
    changed = tmp_path / "changed.tflite"
    changed.write_bytes(Packer().pack(model))
    with pytest.raises(VerificationError, match=f"It first differs at {told}"):
        prove(frozen, changed, load(changed))


def test_what_is_not_kept_between_calls_is_found(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call alone is right: the text begins anew with the first token that is decoded."""
    frozen, path = made
    feeds = Text.feeds
    monkeypatch.setattr(
        Text, "feeds", lambda self, ids: feeds(self, ids) | {"input_pos": np.arange(len(ids), dtype=np.int32)}
    )
    with pytest.raises(VerificationError, match=r"a text read in parts .* does not keep its keys and values"):
        prove(frozen, path, load(path))


def test_a_rows_scale_is_divided_once() -> None:
    """As IEEE 754 divides: the last bit decides the codes of values between two of them."""
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    span = np.maximum(x.numpy().max(1), 0) - np.minimum(x.numpy().min(1), 0)
    expected = np.float32(1) / (np.float32(255) / span)
    assert np.array_equal(quantize_rows(x)[1][:, 0].numpy(), expected)
