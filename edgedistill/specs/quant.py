"""The quantization scheme: one value that drives fake-quantization in training and the codes in every file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgedistill.specs.base import Spec


class PerTensor(Spec):
    """One scale for the whole tensor."""

    kind: Literal["per_tensor"] = "per_tensor"


class PerChannel(Spec):
    """One scale for each index along `axis` (0: an output channel of a layer, a row of an embedding)."""

    kind: Literal["per_channel"] = "per_channel"
    axis: Literal[0] = 0


class PerGroup(Spec):
    """One scale for every `size` neighbours along the input axis of a matrix (axis 1)."""

    kind: Literal["per_group"] = "per_group"
    size: Literal[32] = Field(default=32, description="the one size that Q4_0, Core ML and TFLite blocks share")


class WeightGrid(Spec):
    """How one weight is stored: signed integers, zero point 0, `w = code * scale`.

    8 bits: code in -127..127. 4 bits: code in -8..7, of which -8 is only reached by a clipped or learned scale.
    """

    bits: Literal[4, 8] = 8
    granularity: Annotated[PerChannel | PerGroup, Field(discriminator="kind")] = PerChannel()

    @property
    def label(self) -> str:
        """The name that formats list in `HOLDS`: "int8 per channel", "int4 per group of 32"."""
        each = "channel" if isinstance(self.granularity, PerChannel) else f"group of {self.granularity.size}"
        return f"int{self.bits} per {each}"

    @property
    def code_max(self) -> int:
        """The largest integer code, 127 or 7."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def code_min(self) -> int:
        """The smallest integer code: -127, or -8."""
        return -127 if self.bits == 8 else -8


class QuantScheme(Spec):
    """How a student is stored and computed.

    Weights are symmetric integers on a `WeightGrid` whose scales every chosen format stores without rounding. Biases,
    norms and position embeddings stay float. Convolution kernels have no groups: under a grid per group they are per
    channel with the same bits.
    """

    weights: WeightGrid = Field(default=WeightGrid(), description="linear layers and convolutions")
    embeddings: WeightGrid = Field(default=WeightGrid(), description="rows of embedding tables")
    head: WeightGrid = Field(default=WeightGrid(), description="the last layer, which makes the logits")
    layers: Mapping[str, WeightGrid] = Field(
        default={}, description="exceptions, by tensor name: what a sensitivity pass found worth more or fewer bits"
    )
    activations: Literal["dynamic_int8", "static_int8", "float"] = Field(
        default="dynamic_int8",
        description="dynamic_int8: each row of a linear layer's input is quantized at run time; "
        "static_int8: ranges are learned in training and stored in the file; float: weights only",
    )
    scale_dtype: Literal["fp16", "bf16"] = Field(
        default="fp16",
        description="every scale is a number of this type; bf16: of both, which LiteRT's groups of 32 need",
    )

    @model_validator(mode="after")
    def _static_is_per_channel(self) -> QuantScheme:
        layers = {"weights": self.weights, "head": self.head, **{f"layers.{k}": v for k, v in self.layers.items()}}
        grouped = [name for name, grid in layers.items() if isinstance(grid.granularity, PerGroup)]
        if self.activations == "static_int8" and grouped:
            raise ValueError(
                f"{grouped[0]} = {layers[grouped[0]].label!r} does not go with static_int8 activations: a static layer "
                'has one scale for each channel; take granularity = { kind = "per_channel" } or dynamic_int8'
            )
        return self

    def grids(self) -> tuple[WeightGrid, ...]:
        """Every grid that the scheme uses, each once, in a fixed order."""
        return tuple(dict.fromkeys((self.weights, self.embeddings, self.head, *self.layers.values())))

    @property
    def label(self) -> str:
        """A short name for reports, e.g. "int8 per channel, dynamic_int8 activations"."""
        return f"{' + '.join(grid.label for grid in self.grids())}, {self.activations} activations"

    def misfit(
        self,
        holds: Mapping[str, tuple[str, ...]],
        excludes: Sequence[tuple[Mapping[str, str], str]] = (),
    ) -> str | None:
        """None if a format that `holds` these values stores the scheme exactly, else what it cannot and what it can.

        `holds` maps "weights", "embeddings" and "head" to labels of grids, "activations" and "scale_dtype" to values.
        `excludes` lists combinations that it cannot hold although it holds each part, with the reason.
        """
        for key, value in self._parts():
            allowed = holds.get(key.partition(".")[0])
            if allowed is not None and value not in allowed:
                where = key.removeprefix("weights.")
                return f"export.scheme.{where} = {value!r}; it holds {', '.join(map(repr, allowed))}"
        for combination, reason in excludes:
            if all(any((key.partition(".")[0], value) == item for key, value in self._parts())
                   for item in combination.items()):  # fmt: skip
                told = " with ".join(f"{key} = {value!r}" for key, value in combination.items())
                return f"export.scheme.{told}: {reason}"
        return None

    def _parts(self) -> list[tuple[str, str]]:
        """Every choice of the scheme as a name and a label; exceptions count among the weights."""
        return [
            ("weights", self.weights.label),
            ("embeddings", self.embeddings.label),
            ("head", self.head.label),
            *((f"weights.layers.{name}", grid.label) for name, grid in self.layers.items()),
            ("activations", self.activations),
            ("scale_dtype", self.scale_dtype),
        ]
