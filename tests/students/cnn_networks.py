"""Small networks of the cnn family that have seen some images, and their weights under the published names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from edgedistill.students import cnn
from edgedistill.students.cnn.module import CnnClassifier, build

TINY = cnn.TINY


def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with statistics and gains of their own, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.3, 2.0, generator=generator)
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.3, generator=generator)
    return model.eval()


def twin(config: cnn.Config = TINY) -> CnnClassifier:
    torch.manual_seed(0)
    model = lived_in(build(config, batch_norm=True))
    assert isinstance(model, CnnClassifier)
    return model


def pixels(config: cnn.Config = TINY, count: int = 3) -> Tensor:
    (signature,) = cnn.signatures(config, ())
    random = np.random.default_rng(1)
    return torch.from_numpy(np.concatenate([cnn.sample(config, signature, random)["pixels"] for _ in range(count)]))


def as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names to those of efficientnet_lite_pytorch, written down once more."""
    numbers = {"expand": 0, "depthwise": 1, "project": 2}
    fixed = {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "final.conv": "_conv_head", "final.norm": "_bn1"}
    out = {}
    for name, value in state.items():
        module, part = name.rsplit(".", 1)
        if module == "classifier":
            module = "_fc"
        elif module in fixed:
            module = fixed[module]
        else:
            _, block, unit, kind = module.split(".")
            module = f"_blocks.{block}." + (f"_{unit}_conv" if kind == "conv" else f"_bn{numbers[unit]}")
        out[f"{module}.{part}"] = value
    return out
