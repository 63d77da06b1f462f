"""Decoders of every architecture as Core ML packages: keys and values in states, a text read in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill.exporters import coreml
from edgedistill.quant import freeze
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import llama, part

SIZES: dict[str, Any] = {"layers": 2, "width": 32, "kv_heads": 2, "head_width": 16, "ffn": 64, "vocabulary": 90}
OWN: dict[str, dict[str, Any]] = {
    "llama": {"heads": 4, "tied": False},
    "qwen2": {"heads": 2},
    "qwen3": {"heads": 4, "rope_theta": 1e6},
    "gemma3": {"heads": 4, "window": 4, "global_every": 2},
}
GROUPS = WeightGrid(bits=4, granularity=PerGroup())


@pytest.mark.parametrize(
    "architecture", ["gemma3", *(pytest.param(name, marks=pytest.mark.slow) for name in list(OWN)[:3])]
)
def test_a_decoder_goes_on_with_a_text_as_the_student_does(architecture: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = llama.Config(architecture=architecture, max_length=20, **SIZES, **OWN[architecture])
    model = part("llama", "module").build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, mean=float("norm" in name), std=0.15)
    frozen = freeze(model, "llama", config, QuantScheme(weights=GROUPS, activations="float"), {})
    coreml.export(frozen, (8, 20), tmp_path / "decoder.mlpackage")
    ids = np.random.default_rng(0).integers(0, 90, (1, 20), np.int32)
    with torch.no_grad():
        expected = frozen.to_module("float")(torch.from_numpy(ids)).logits.numpy()
    session = coreml.load(tmp_path / "decoder.mlpackage").session()
    found = np.concatenate([session.read(piece) for piece in np.split(ids, [9, 10, 11, 17], axis=1)], axis=1)
    assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.9
