"""A checkpoint that somebody trained with torchao's quantization-aware training, as `edgedistill convert` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from edgedistill.specs.base import Spec
from edgedistill.specs.quant import QuantScheme

Kind = Literal["linear", "head", "embedding", "convolution"]


class Checkpoint(Spec):
    """What a file of weights does not say about itself. Paths are relative to the file that holds this."""

    family: str = "bert"
    weights: str = Field(
        description="safetensors: the state dict of the family's network, prepared with torchao's QATConfig, saved "
        "before its convert step"
    )
    tokenizer: str = Field(description="tokenizer.json of the tokenizers library")
    labels: Annotated[tuple[str, ...], Field(min_length=2)] = Field(description="in the order of the logits")
    buckets: Annotated[tuple[int, ...], Field(min_length=1)]
    config: Mapping[str, int | float] = Field(description="the family's sizes; vocabulary and classes are told")
    scheme: QuantScheme = Field(description="the grids that it was trained on")
    float_kinds: tuple[Kind, ...] = Field(default=(), description="what torchao left float: quantized now, by absmax")
    scale_precision: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="scale_precision of the fake quantizers"
    )
    learned_scales: bool = Field(default=False, description="range_learning of the fake quantizers")
