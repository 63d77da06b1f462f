"""What every model of the package answers, teacher or student."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Outputs(NamedTuple):
    """Class logits and the pooled embedding they were computed from."""

    logits: Float[Tensor, "batch classes"]
    pooled: Float[Tensor, "batch width"]
