"""Which tensors can do with 4 bits: what each one costs in KL when it alone is narrowed, and a choice within a budget.

    found = measure(model, "bert", config, scheme, logits)
    layers = allocate(found.increases, sizes_of(tensors, scheme), budget_bytes=400_000)
    scheme = scheme.model_copy(update={"layers": layers})

The choice takes the increases of several tensors to add up, as the integer programme of HAWQ-V3 does (Yao et al. 2021,
arXiv 2011.10680). That is an approximation: measure the student that is frozen again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from edgedistill.errors import StageError
from edgedistill.quant.frozen import FrozenStudent, freeze
from edgedistill.quant.grid import codes_of, scales_of
from edgedistill.quant.stored import QuantizedTensor
from edgedistill.specs.base import Spec
from edgedistill.specs.quant import QuantScheme, WeightGrid
from edgedistill.students._allocation import NARROW, WIDE, allocate, narrowable, sizes_of

__all__ = ["NARROW", "WIDE", "Logits", "Sensitivity", "allocate", "mean_kl", "measure", "narrowable", "sizes_of"]

Logits = Callable[[nn.Module], Tensor]
"""The logits [..., classes] of a module in eval mode on the calibration samples: always the same ones."""


class Sensitivity(NamedTuple):
    """Mean KL(float student ‖ quantized student) of the logits, in nats.

    `scheme_kl` is that of the scheme as it is; `increases` what each tensor adds when it alone is on the narrow grid.
    """

    scheme_kl: float
    increases: dict[str, float]


def measure(
    model: nn.Module,
    family: str,
    config: Spec,
    scheme: QuantScheme,
    logits: Logits,
    narrow: WeightGrid = NARROW,
) -> Sensitivity:
    """Freeze each quantized tensor alone on `narrow`, the others as in `scheme`, and compare with the float student.

    `model` is what `freeze` takes; its weights are the float student's. The narrow scales are those of absmax. Tensors
    that `narrow` does not fit, or that are on it already, are left out.

    Raises:
        StageError: `model` cannot be frozen, or logits are not finite.
    """
    frozen = freeze(model, family, config, scheme, {})
    weights = {name: model.state_dict()[name].detach().float() for name in frozen.quantized}
    floats = {name: value.cpu().numpy() for name, value in weights.items()}
    wanted = _finite(logits(replace(frozen, quantized={}, floats=floats | frozen.floats).build()), "the float student")
    base = mean_kl(wanted, _finite(logits(frozen.to_module()), "the frozen student"))
    increases = {}
    for name, grid in narrowable(frozen.tensors, scheme, narrow).items():
        scales = scales_of(weights[name], grid, scheme.scale_dtype)
        small = QuantizedTensor(codes_of(weights[name], scales, grid).numpy(), scales.numpy())
        layers = {**scheme.layers, name: narrow}
        variant: FrozenStudent = replace(
            frozen,
            scheme=scheme.model_copy(update={"layers": layers}),
            quantized=frozen.quantized | {name: small},
        )
        seen = _finite(logits(variant.to_module()), f"the student with {name} in {grid.label}")
        increases[name] = mean_kl(wanted, seen) - base
    return Sensitivity(base, increases)


def mean_kl(p: Float[Tensor, "*rows classes"], q: Float[Tensor, "*rows classes"]) -> float:
    """KL(p ‖ q) of logits in nats, averaged over rows; 0 when they are equal."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def _finite(logits: Tensor, of: str) -> Tensor:
    if not bool(logits.isfinite().all()):
        raise StageError(f"{of} gives logits that are not finite on the calibration samples.")
    return logits.detach()
