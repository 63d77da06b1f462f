"""What every operation of an ML Program computes: one function per name, as Apple's documents of MIL say.

A kernel takes the operation's `Arguments` and returns the values it defines, floats in the type computed in. Rounding
to fp16, types and shapes are the evaluator's. `UNCHANGED` are the operations whose float results are elements of their
inputs (or constants the program holds): rounding them again would change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgedistill.coreml.kernels import (
    activation,
    elementwise,
    indexing,
    linear,
    normal,
    pool,
    quantized,
    reduce,
    shape,
    spatial,
    state,
)
from edgedistill.coreml.values import Arguments, Result

Kernel = Callable[[Arguments], Result]

_GROUPS = (activation, elementwise, indexing, linear, normal, pool, quantized, reduce, shape, spatial, state)
KERNELS: Mapping[str, Kernel] = {name: kernel for group in _GROUPS for name, kernel in group.KERNELS.items()}

UNCHANGED = frozenset(shape.KERNELS) | frozenset(
    {
        "abs",
        "classify",
        "crop",
        "depth_to_space",
        "fill",
        "gather",
        "gather_along_axis",
        "gather_nd",
        "identity",
        "max_pool",
        "maximum",
        "minimum",
        "read_state",
        "reduce_max",
        "reduce_min",
        "relu",
        "select",
        "space_to_depth",
        "topk",
    }
)
