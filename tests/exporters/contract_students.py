"""The students that the contract of formats is tested with: of every family, the smallest whose rows hold groups."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgedistill import catalog, quant
from edgedistill.quant import FrozenStudent
from edgedistill.specs import QuantScheme, Spec
from edgedistill.students import part

BUCKETS = (8, 16)
# wide enough for groups of 32
WIDER = {
    "bert": {"width": 32, "ffn": 64},
    "cnn": {"head_width": 32},
    "vit": {"width": 32, "ffn": 64, "patch": 8},
}


def config_of(family: str, **changes: Any) -> Spec:
    """The family's smallest student, made wide enough; `changes` to its sizes."""
    tiny: Spec = catalog.load_plugin("students", family).TINY
    return tiny.model_copy(update={**WIDER.get(family, {}), **changes})


@functools.cache
def task(format_name: str) -> dict[str, Any]:
    """What a student must bring for a format: a bundle for texts needs a tokenizer."""
    if format_name != "litertlm":
        return {}
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<|im_end|>"], show_progress=False)
    built.train_from_iterator(["a banana and an apple; the ape had the last banana"], trainer)
    return {"tokenizer_json": json.loads(built.to_str())}


def student(family: str, scheme: QuantScheme, task: dict[str, Any] | None = None, **changes: Any) -> FrozenStudent:
    """Weights as large as trained ones, so that logits are of order 1; static ranges observed on random samples."""
    torch.manual_seed(0)
    apart = torch.Generator().manual_seed(1)
    plugin = catalog.load_plugin("students", family)
    config = config_of(family, **changes)
    model = part(family, "module").build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else 1.2 / parameter[0].numel() ** 0.5)
            else:  # as after training, no two are alike: a file would hold equal ones once
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=apart))
    quant.prepare(model, scheme, plugin.tensors(config)).train()
    if scheme.activations == "static_int8":
        random = np.random.default_rng(1)
        with torch.no_grad():
            for signature in itertools.islice(itertools.cycle(plugin.signatures(config, BUCKETS)), 24):
                feeds = plugin.sample(config, signature, random)
                model(*(torch.from_numpy(feeds[port.name]) for port in signature.inputs))
    quant.freeze_observers(model)
    return quant.freeze(model.eval(), family, config, scheme, task or {})


def differences(format_name: str, frozen: FrozenStudent, path: Path) -> list[str]:
    """What of the student's codes and scales is something else in the file, or is not there."""
    found = catalog.load_plugin("exporters", format_name).read_back(path)
    odd = [f"{name} is only in one of them" for name in found.keys() ^ frozen.quantized.keys()]
    for name in found.keys() & frozen.quantized.keys():
        expected = frozen.quantized[name]
        assert len(np.unique(expected.codes)) > 8, "the test needs weights that use their grid"
        for numbers in ("codes", "scales"):
            if not np.array_equal(getattr(found[name], numbers), getattr(expected, numbers)):
                odd.append(f"{name}: {numbers}")
    return odd
