"""The quantization scheme: one value that drives fake-quantization in training and the codes in every file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgedistill.specs.base import Spec


class PerTensor(Spec):
    """One scale for the whole tensor."""

    kind: Literal["per_tensor"] = "per_tensor"


class PerChannel(Spec):
    """One scale for each index along `axis` (0: an output channel of a linear layer, a row of an embedding)."""

    kind: Literal["per_channel"] = "per_channel"
    axis: Literal[0] = 0


class QuantScheme(Spec):
    """How a student is stored and computed.

    Weights are symmetric integers: `w = code * scale`, code in [-(2^(bits-1)-1), 2^(bits-1)-1], zero point 0, and every
    scale is representable in fp16, so that each mobile format can hold it. Linear layers and embeddings are quantized;
    biases, layer norms and position embeddings stay float.
    """

    weight_bits: Literal[8] = 8
    activations: Literal["dynamic_int8", "static_int8"] = Field(
        default="dynamic_int8",
        description="dynamic_int8: each row of a linear layer's input is quantized at run time; "
        "static_int8: ranges are learned in training and stored in the file",
    )
    granularity: PerChannel = PerChannel()
    scale_dtype: Literal["fp16"] = "fp16"

    @property
    def code_max(self) -> int:
        """The largest integer code; the smallest is its negative (127 for 8 bits)."""
        return int(2 ** (self.weight_bits - 1) - 1)
