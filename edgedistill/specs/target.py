"""A device: what it is, what it can run, and the budget a build must meet on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgedistill.specs.base import Spec

Positive = Annotated[float, Field(gt=0, strict=True)]  # strict: neither "8" nor true is a number
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=64)]
FormatName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", description="a file in edgedistill/exporters/")]


FLOORS = ("prefill_tokens_per_s", "decode_tokens_per_s")


class Budget(Spec):
    """What the gate enforces. None: not limited. `size_mb` counts the shipped model file; 1 MB = 10^6 bytes.

    The lines in tokens per second are the least that a model which makes text must reach; all others are the most that
    it may take. `first_token_ms` is the time to read a prompt and choose one token.
    """

    size_mb: Positive | None = None
    latency_p95_ms: Positive | None = None
    peak_memory_mb: Positive | None = None
    energy_mj: Positive | None = None
    first_token_ms: Positive | None = None
    prefill_tokens_per_s: Positive | None = None
    decode_tokens_per_s: Positive | None = None

    def limits(self) -> dict[str, float]:
        """The lines of any model that are limited, in a fixed order."""
        return {name: value for name, value in self._all().items() if name not in ("first_token_ms", *FLOORS)}

    def text_limits(self) -> dict[str, float]:
        """The lines of a model that makes text that are limited, in a fixed order."""
        return {name: value for name, value in self._all().items() if name in ("first_token_ms", *FLOORS)}

    def tightened(self, other: Budget) -> Budget:
        """For each line the harder of both limits."""
        mine, theirs = self._all(), other._all()
        hardest = {k: max if k in FLOORS else min for k in (*mine, *theirs)}
        return Budget(**{k: pick(mine.get(k, theirs.get(k, 0)), theirs.get(k, mine.get(k, 0)))
                         for k, pick in hardest.items()})  # fmt: skip

    def _all(self) -> dict[str, float]:
        return {name: value for name, value in self.model_dump().items() if value is not None}


class ComputeUnit(Spec):
    """One processor of the device; figures as published, None where nothing citable is known."""

    kind: Literal["cpu", "gpu", "npu"]
    name: str
    peak_fp32_gflops: Positive | None = Field(default=None, description="all cores together")
    one_core_fp32_gflops: Positive | None = Field(
        default=None, description="cpu: the fastest core alone; a one-thread latency is scaled by it"
    )
    int8_tops: Positive | None = None


class Target(Spec):
    """Facts and limits of a device. Facts carry their source; a recalled figure says so in `source`."""

    name: Name
    title: str
    soc: str
    os: Literal["android", "ios", "linux"]
    os_version_min: str = Field(default="", description="oldest version the artifacts must load on, e.g. '14'")
    ram_mb: Positive
    memory_bandwidth_gb_per_s: Positive | None = None
    battery_wh: Positive | None = None
    formats: Annotated[tuple[FormatName, ...], Field(min_length=1)]
    runner: Literal["host", "adb", "ssh", "ios"]
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    unfit: Literal["record", "mark", "refuse"] | None = Field(
        default=None, description="what becomes of figures taken while the device is not fit, as --unfit, which wins"
    )
    models: tuple[str, ...] = Field(
        default=(), description="how such a device names itself (ro.product.model, device tree); * stands for anything"
    )
    compute_units: Annotated[tuple[ComputeUnit, ...], Field(min_length=1)]
    source: str
    budget: Budget = Budget()

    @model_validator(mode="after")
    def _consistent(self) -> Target:
        kinds = [unit.kind for unit in self.compute_units]
        if kinds.count("cpu") != 1:
            raise ValueError("compute_units needs exactly one entry of kind 'cpu'")
        peak = self.budget.peak_memory_mb
        if peak is not None and peak > self.ram_mb:
            raise ValueError(f"budget.peak_memory_mb = {peak:g} is above ram_mb = {self.ram_mb:g}")
        return self

    @property
    def cpu(self) -> ComputeUnit:
        """The CPU, which every target has."""
        return next(unit for unit in self.compute_units if unit.kind == "cpu")
