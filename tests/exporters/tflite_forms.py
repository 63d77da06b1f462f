"""A student and its .tflite in every form that a weight can have there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from edgedistill import catalog, quant
from edgedistill.exporters.tflite.carriers import stored_as
from edgedistill.exporters.tflite.editing import Edit
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.reading import names, parse
from edgedistill.exporters.tflite.weights import packed
from edgedistill.quant import FrozenStudent
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import part

INT8 = WeightGrid()


INT4 = WeightGrid(bits=4)


GROUPS = WeightGrid(bits=4, granularity=PerGroup())


WIDER = {"bert": {"width": 32, "ffn": 64}, "vit": {"width": 32, "ffn": 64, "image_size": 24}, "cnn": {}}


LENGTH = 16


class Form(NamedTuple):
    family: str
    scheme: QuantScheme
    buckets: tuple[int, ...] = (LENGTH,)


FORMS = {
    "int8": Form("bert", QuantScheme()),
    "weight-only int8": Form("bert", QuantScheme(activations="float")),
    "weight-only int4": Form("bert", QuantScheme(weights=INT4, head=INT4, embeddings=INT4, activations="float")),
    "mixed": Form("bert", QuantScheme(weights=INT4, layers={"layers.0.up.weight": INT8})),
    "groups": Form("bert", QuantScheme(weights=GROUPS, head=GROUPS, embeddings=GROUPS, scale_dtype="bf16"), (8, 16)),
    "images int8": Form("cnn", QuantScheme(activations="static_int8")),
    "images weight-only": Form(
        "cnn", QuantScheme(activations="float", weights=INT4, layers={"stem.conv.weight": INT8})
    ),
    "patches": Form("vit", QuantScheme()),
    "patches int4": Form("vit", QuantScheme(weights=INT4, head=INT4, activations="static_int8")),
}


def student(family: str, scheme: QuantScheme) -> FrozenStudent:
    """Biases and norms as large as trained ones; activation ranges seen on random samples; int4 codes down to -8."""
    torch.manual_seed(0)
    plugin = catalog.load_plugin("students", family)
    config = plugin.TINY.model_copy(update=WIDER[family])
    model = part(family, "module").build(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.2)
        elif family == "bert":
            nn.init.normal_(parameter, std=0.2)
    quant.prepare(model, scheme, plugin.tensors(config)).train()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for _ in range(16):
            signature = plugin.signatures(config, (LENGTH,))[0]
            feeds = [plugin.sample(config, signature, random) for _ in range(4)]
            model(*(torch.from_numpy(np.concatenate([feed[p.name] for feed in feeds])) for p in signature.inputs))
    quant.freeze_observers(model)
    frozen = quant.freeze(model.eval(), family, config, scheme, {})
    clipped = {
        name: weight._replace(codes=np.where(weight.codes == -7, np.int8(-8), weight.codes))
        for name, weight in frozen.quantized.items()
        if frozen.grids()[name].bits == 4
    }
    return dataclasses.replace(frozen, quantized=frozen.quantized | clipped)


Made = tuple[FrozenStudent, Path]


def edited(path: Path, out: Path, change: Callable[[Edit], None]) -> Path:
    """A copy of a file with something changed in its graph."""
    schema, model = parse(path)
    edit = Edit(schema, model)
    change(edit)
    out.write_bytes(Packer().pack(model))
    return out


def bytes_in_file(frozen: FrozenStudent, path: Path, name: str) -> bytes:
    codes = stored_as(frozen.quantized[name].codes, names(parse(path)[1], path)[name].layout)
    return (packed(codes) if frozen.grids()[name].bits == 4 else codes).tobytes()
