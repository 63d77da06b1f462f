"""Small students, and files that are changed on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from trained import as_trained

from edgedistill import catalog, quant
from edgedistill.exporters import onnx as exporter
from edgedistill.exporters._proof import answer
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.specs.quant import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import part

INT8, INT4 = WeightGrid(), WeightGrid(bits=4)
INT8_GROUPS, INT4_GROUPS = WeightGrid(granularity=PerGroup()), WeightGrid(bits=4, granularity=PerGroup())
MIXED = {"layers.0.down.weight": INT8, "layers.0.key.weight": INT4, "layers.0.value.weight": INT8_GROUPS}
BERT = {"layers": 1, "width": 32, "heads": 2, "ffn": 64, "vocabulary": 70, "max_length": 16, "classes": 5}
SIZES: dict[str, dict[str, Any]] = {"bert": BERT, "vit": {"patch": 8, "width": 32, "ffn": 64}, "llama": {"layers": 1}}
BUCKETS = (4, 9)


def uniform(grid: WeightGrid, activations: Any = "float", **more: Any) -> QuantScheme:
    return QuantScheme(weights=grid, embeddings=grid, head=grid, activations=activations, **more)


CASES: dict[str, tuple[str, QuantScheme]] = {
    "int8": ("bert", uniform(INT8, "dynamic_int8")),
    "int4 groups": ("bert", uniform(INT4_GROUPS, scale_dtype="bf16")),
    "mixed": ("bert", QuantScheme(weights=INT4_GROUPS, embeddings=INT8_GROUPS, layers=MIXED, activations="float")),
    "static": ("bert", uniform(INT8, "static_int8")),
    "cnn": ("cnn", uniform(INT8)),
    "static cnn": ("cnn", uniform(INT4, "static_int8")),
    "vit": ("vit", uniform(INT4_GROUPS)),
    "tied": ("llama", uniform(INT8)),
    "tied int4": ("llama", uniform(INT4_GROUPS)),
}
FLOAT = [name for name, (_, scheme) in CASES.items() if scheme.activations != "static_int8"]
STATIC = [name for name in CASES if name not in FLOAT]
Made = Callable[[str], tuple[FrozenStudent, Path]]


def student(family: str, scheme: QuantScheme) -> FrozenStudent:
    """Weights as large as trained ones, so that outputs are of order 1, with a dead row; ranges of random inputs."""
    torch.manual_seed(0)
    plugin = catalog.load_plugin("students", family)
    config = plugin.TINY.model_copy(update=SIZES.get(family, {}))
    model = as_trained(part(family, "module").build(config))
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() > 1)[0] = 0
    quant.prepare(model, scheme, plugin.tensors(config)).train()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for signature in [*plugin.signatures(config, BUCKETS)] * 6:
            model(*(torch.from_numpy(value) for value in plugin.sample(config, signature, random).values()))
    return quant.freeze(model.eval(), family, config, scheme, {})


def errors_of(frozen: FrozenStudent, path: Path, rounds: int = 6) -> tuple[np.ndarray, float]:
    """The largest difference from torch for random inputs of every length, and the largest output."""
    runner, random = exporter.load(path), np.random.default_rng(7)
    ((name, entry),) = runner.signatures.items()
    module = frozen.to_module(exporter.COMPUTES[frozen.scheme.activations])  # type: ignore[arg-type]
    lengths = [(n,) for n in range(1, 17)] if -1 in entry.inputs[0].shape else [BUCKETS]
    errors, largest = [], 0.0
    for _ in range(rounds):
        for signature in (signature for length in lengths for signature in frozen.signatures(length)):
            feeds = frozen.sample(signature, random)
            expected, found = answer(module, feeds), runner.run(name, feeds)["logits"]
            assert (found.dtype, found.shape) == (np.float32, signature.outputs[0].shape)
            errors.append(float(np.abs(found - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
    return np.array(errors), largest


def spoiled(path: Path, folder: Path, edit: Callable[[Any], Any]) -> Path:
    """A copy of the file after `edit(model)`, in a folder of its own."""
    model = onnx.load(path)
    edit(model)
    out = folder / "spoiled.onnx"
    out.write_bytes(model.SerializeToString())
    return out


def rewire(model: Any, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def at_buckets(frozen: FrozenStudent, path: Path) -> Any:
    return exporter._AtBuckets(exporter.load(path), {s.name: s for s in frozen.signatures(BUCKETS)})
