"""Networks with weights as after training."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def as_trained(model: nn.Module) -> nn.Module:
    """Weights as large as trained ones, so that outputs are of order 1; no bias is zero and no gain is one."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter += 0.2 * torch.randn_like(parameter)
        else:
            nn.init.normal_(parameter, std=0.2 if parameter.dim() == 1 else 1.2 / parameter[0].numel() ** 0.5)
    return model
