"""What a runner notes about a device: which one it is, the state it was in, and what each launch of a file cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from edgedistill.specs.base import Spec

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Fingerprint(Spec):
    """Which device and runtime a figure belongs to. A stored baseline is comparable only where all of it is equal.

    `device_id` is the sha256 of the serial number or host name and its key, so that a report does not give it away.
    `core_mask` is hexadecimal as for `taskset`; empty: not pinned. `emulator` names what stands in for the hardware,
    empty on a real device; figures with one are `emulated` whatever else is known.
    """

    runner: Literal["host", "adb", "ssh", "ios"]
    device_id: str
    model: str
    os_build: str
    cpu: str
    machine: str
    runtime: str
    runtime_version: str
    threads: Annotated[int, Field(ge=1)]
    core_mask: str = ""
    emulator: str = ""


class Conditions(Spec):
    """A device at one moment. None: it does not say.

    `thermal_status` is Android's, 0 (none) to 6 (shutdown). `charging` is about the battery: None without one.
    `load_average` is the one-minute load of the kernel. `frequency_mhz` is that of the fastest core just then.
    """

    thermal_status: Annotated[int, Field(ge=0, le=6)] | None = None
    temperature_celsius: float | None = None
    charging: bool | None = None
    battery_percent: Annotated[float, Field(ge=0, le=100)] | None = None
    low_power_mode: bool | None = None
    governor: str | None = None
    frequency_mhz: Positive | None = None
    load_average: Annotated[float, Field(ge=0)] | None = None


class Summary(Spec):
    """What a tool that keeps no samples says of one launch, in ms; `count` inferences. None: it does not say."""

    count: Annotated[int, Field(ge=1)] | None = None
    mean_ms: Positive
    min_ms: Positive | None = None
    max_ms: Positive | None = None
    std_ms: Annotated[float, Field(ge=0)] | None = None
    p5_ms: Positive | None = None
    p50_ms: Positive | None = None
    p95_ms: Positive | None = None


class Launch(Spec):
    """One process launch. Its raw samples are `Measurement.samples_ns` of the same place; a tool without any leaves
    a `summary`.

    `peak_rss_mb` is the kernel's high-water mark of the whole process, `baseline_rss_mb` its value before the file was
    loaded. `others_share` is what other processes took of all cores while this one was timed, `steal_share` what the
    hypervisor gave to other machines; None: the device does not say. `tokens_per_s` has `prefill` and `decode` where
    text is generated.
    """

    load_ms: float | None = None
    first_inference_ms: float | None = None
    peak_rss_mb: float | None = None
    baseline_rss_mb: float | None = None
    involuntary_switches: Count | None = None
    others_share: Annotated[float, Field(ge=0, le=1)] | None = None
    steal_share: Annotated[float, Field(ge=0, le=1)] | None = None
    energy_mj: float | None = None
    tokens_per_s: Mapping[str, float] = {}
    summary: Summary | None = None
    before: Conditions = Conditions()
    after: Conditions = Conditions()


class Energy(Spec):
    """Energy of one inference, as far as the meter sees, idle power not taken off. `energy_mj` is None, never 0, where
    it was not metered: `note` says why. `low_mj` and `high_mj` are its bounds by the meter's resolution and samples.

    `above_idle_mj` is what is above `idle_mw`, the power of a pause just before; None where the difference cannot be
    told. `resolution_mj` is the smallest difference that the meter can show, per inference; `covers` is the part of
    the device that it sees, `interval_ms` the time between its readings, `window_s` what was metered of each launch.
    `rails_mj` may hold rails that are parts of others.
    """

    energy_mj: Positive | None
    low_mj: Annotated[float, Field(ge=0)] | None = None
    high_mj: Positive | None = None
    above_idle_mj: Positive | None = None
    idle_mw: float | None = None
    source: str = ""
    covers: str = ""
    resolution_mj: Positive | None = None
    window_s: Positive | None = None
    interval_ms: Positive | None = None
    rails_mj: Mapping[str, float] = {}
    note: str = ""


class Placement(Spec):
    """The operators that one compute unit or delegate ran, from an operator profile; `time_ms` is per inference."""

    unit: str
    operators: Count
    time_ms: Annotated[float, Field(ge=0)]
    time_share: Annotated[float, Field(ge=0, le=1)]


class Sustained(Spec):
    """A long run: medians of its first and last window, and of each window between. `ratio` above 1: it got slower."""

    seconds: Positive
    window_s: Positive
    first_ms: Positive
    last_ms: Positive
    curve_ms: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median latency of the last window over that of the first."""
        return self.last_ms / self.first_ms


class Outputs(Spec):
    """What the device answered on the golden samples, against the answers stored with the file."""

    samples: Annotated[int, Field(ge=1)]
    max_abs_difference: Annotated[float, Field(ge=0)]
    reference_max_abs: Annotated[float, Field(ge=0)]
    labels_agree: Count
