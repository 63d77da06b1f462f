"""Which tensors can do with 4 bits: what each one costs in KL when it alone is narrowed, and a choice within a budget.

    found = measure(model, "bert", config, scheme, logits)
    layers = allocate(found.increases, sizes_of(tensors, scheme), budget_bytes=400_000)
    scheme = scheme.model_copy(update={"layers": layers})

The choice takes the increases of several tensors to add up, as the integer programme of HAWQ-V3 does (Yao et al. 2021,
arXiv 2011.10680). That is an approximation: measure the student that is frozen again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from edgedistill.errors import SpecError, StageError
from edgedistill.quant.frozen import FrozenStudent, freeze
from edgedistill.quant.grid import codes_of, scales_of
from edgedistill.quant.stored import QuantizedTensor, stored_bytes
from edgedistill.specs.base import Spec
from edgedistill.specs.quant import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import StoredTensor

WIDE, NARROW = WeightGrid(), WeightGrid(bits=4, granularity=PerGroup())
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


def narrowable(
    tensors: Sequence[StoredTensor], scheme: QuantScheme, narrow: WeightGrid = NARROW
) -> dict[str, WeightGrid]:
    """The grid that each tensor would get from `narrow` (a kernel has no groups), if it fits and is not its own yet.

    Groups fit a width that they divide, and nothing in a static_int8 student, whose `layers` have one scale a channel.
    """
    found = {}
    for tensor in tensors:
        own = tensor.grid(scheme)
        grid = tensor.grid(scheme.model_copy(update={"layers": {tensor.name: narrow}}))
        if own is None or grid is None or own == grid:
            continue
        size = grid.granularity.size if isinstance(grid.granularity, PerGroup) else None
        if size is None or (scheme.activations != "static_int8" and tensor.shape[1] % size == 0):
            found[tensor.name] = grid
    return found


def sizes_of(
    tensors: Sequence[StoredTensor], scheme: QuantScheme, narrow: WeightGrid = NARROW
) -> dict[str, tuple[int, int]]:
    """Bytes of each tensor that can be narrowed: as in `scheme`, and on `narrow`; codes packed, scales float32."""
    grids = narrowable(tensors, scheme, narrow)
    sizes = {}
    for tensor in tensors:
        own = tensor.grid(scheme)
        if own is not None and tensor.name in grids:
            sizes[tensor.name] = stored_bytes(tensor.shape, own), stored_bytes(tensor.shape, grids[tensor.name])
    return sizes


def allocate(
    sensitivities: Mapping[str, float],
    sizes: Mapping[str, tuple[int, int]],
    budget_bytes: int,
    wide: WeightGrid = WIDE,
    narrow: WeightGrid = NARROW,
) -> dict[str, WeightGrid]:
    """`wide` or `narrow` for each tensor, so that together they take at most `budget_bytes`; for `QuantScheme.layers`.

    `sensitivities` are increases of the KL when a tensor is narrow (one below 0 is noise and counts as 0), `sizes` its
    bytes (wide, narrow). Tensors are narrowed in the order of KL increase per byte saved until the budget holds; then
    those that turn out not to be needed are made wide again, the most sensitive first.

    The sum of increases is at most that of the last tensor narrowed above the least possible: up to that tensor it is
    the optimum of the relaxed problem, in which a part of a tensor can be narrow, and that is no larger than the real
    one (Dantzig 1957). It is the least where all tensors save the same bytes.

    Raises:
        SpecError: the names differ, an increase is not finite, or nothing fits the budget (the message has what would).
    """
    if sensitivities.keys() != sizes.keys():
        odd = ", ".join(sorted(sensitivities.keys() ^ sizes.keys())[:3])
        raise SpecError(f"sensitivities and sizes are of different tensors: {odd} is only in one of them.")
    if odd := ", ".join(name for name, value in sensitivities.items() if not isfinite(value)):
        raise SpecError(f"the sensitivity of {odd} is not a finite number: measure it again.")
    smallest = sum(min(pair) for pair in sizes.values())
    if smallest > budget_bytes:
        raise SpecError(
            f"a budget of {budget_bytes} bytes cannot be met: with every tensor that gains by it in {narrow.label} the "
            f"weights take {smallest} bytes. Raise the budget to that or more, or take a smaller student."
        )
    cost = {name: max(0.0, value) for name, value in sensitivities.items()}
    saved = {name: large - small for name, (large, small) in sizes.items() if large > small}
    taken = sum(large for large, _ in sizes.values())
    chosen = []
    for name in sorted(saved, key=lambda name: (cost[name] / saved[name], -saved[name], name)):
        if taken <= budget_bytes:
            break
        chosen.append(name)
        taken -= saved[name]
    for name in sorted(chosen, key=lambda name: (-cost[name], name)):
        if taken + saved[name] <= budget_bytes:
            chosen.remove(name)
            taken += saved[name]
    return {name: narrow if name in chosen else wide for name in sizes}


def _finite(logits: Tensor, of: str) -> Tensor:
    if not bool(logits.isfinite().all()):
        raise StageError(f"{of} gives logits that are not finite on the calibration samples.")
    return logits.detach()
