"""Small students, and what their packages answer."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgedistill.coreml import load as parse
from edgedistill.exporters import coreml
from edgedistill.exporters.coreml.convert import Converter
from edgedistill.quant.fake import prepare
from edgedistill.quant.frozen import FrozenStudent, freeze
from edgedistill.specs.quant import PerChannel, PerGroup, QuantScheme, WeightGrid
from edgedistill.students import bert

MID = bert.Config(layers=1, width=64, heads=2, ffn=96, vocabulary=300, max_length=24, classes=9)
BUCKETS = (8, 16, 24)
SNIPPETS = Path(__file__).parents[3] / "edgedistill" / "pipeline" / "snippets" / "coreml"


def grid(bits: Any, *, groups: bool = False) -> WeightGrid:
    return WeightGrid(bits=bits, granularity=PerGroup() if groups else PerChannel())


SCHEMES = {
    "int8 per channel": QuantScheme(),
    "int4 per channel": QuantScheme(weights=grid(4), embeddings=grid(4), head=grid(4), activations="float"),
    "groups": QuantScheme(weights=grid(4, groups=True), embeddings=grid(8, groups=True), head=grid(8, groups=True)),
    "static": QuantScheme(head=grid(4), activations="static_int8"),
}


def student(family: str, config: Any, scheme: QuantScheme) -> FrozenStudent:
    """A student with random weights, of which no bias is zero and no gain is one."""
    about = importlib.import_module(f"edgedistill.students.{family}")
    torch.manual_seed(0)
    model = importlib.import_module(f"edgedistill.students.{family}.module").build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    if scheme.activations == "static_int8":
        prepare(model, scheme, about.tensors(config)).train()
        random, (signature, *_) = np.random.default_rng(1), about.signatures(config, [8])
        for _ in range(10):
            model(*(torch.from_numpy(value) for value in about.sample(config, signature, random).values()))
    return freeze(model.eval(), family, config, scheme, {})


def answers(frozen: FrozenStudent, path: Path, rows: int = 24, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the student and the package answer to the same random inputs, [rows, ...] each."""
    runner = coreml.load(path, **options)
    (name,) = runner.signatures
    kind: Any = coreml.COMPUTES[frozen.scheme.activations]
    module, random, found = frozen.to_module(kind), np.random.default_rng(7), []
    signatures = frozen.signatures(BUCKETS)
    for row in range(rows):
        feeds = frozen.sample(signatures[row % len(signatures)], random)
        with torch.no_grad():
            ours = module(*(torch.from_numpy(value) for value in feeds.values())).logits.numpy()
        found.append((ours.reshape(-1), runner.run(name, feeds)["logits"].reshape(-1)))
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])


class Converted:
    """What `prove` compares: a student, the program that ships, and its constants before they were rounded."""

    def __init__(self, frozen: FrozenStudent, folder: Path, precision: Any = "float16") -> None:
        self.frozen, self.signatures = frozen, frozen.signatures(BUCKETS)
        converter = Converter(frozen, self.signatures, precision)
        raw = converter.write(folder)
        self.shipped, self.floats = parse(raw.path), raw.floats


def digest(path: Path) -> dict[str, str]:
    files = sorted(item for item in path.rglob("*") if item.is_file())
    return {str(item.relative_to(path)): hashlib.sha256(item.read_bytes()).hexdigest() for item in files}


def blob_of(path: Path) -> Path:
    return path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
