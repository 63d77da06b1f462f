"""What every model of the package answers, teacher or student."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Outputs(NamedTuple):
    """Logits and the embedding they were computed from: of the whole sample, or of each token of a language model."""

    logits: Float[Tensor, "*batch classes"]
    pooled: Float[Tensor, "*batch width"]
