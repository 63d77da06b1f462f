"""What is asked and what is answered: workloads, devices, forecasts, and the user's own measurements."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from edgedistill.errors import SpecError
from edgedistill.specs import Prediction, Spec


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


Number = Annotated[float, BeforeValidator(_number)]
# No model or device is beyond these ends, and what is computed from them stays finite.
Positive = Annotated[Number, Field(ge=1e-9, le=1e12)]
Factor = Annotated[Number, Field(gt=0, le=1e12)]
NotNegative = Annotated[Number, Field(ge=0, le=1e12)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Tokens = Annotated[int, BeforeValidator(_number), Field(ge=1, le=10**9)]
_UNITS = {
    "cpu": ("xnnpack", "kleidiai"),
    "gpu": ("opencl", "metal", "vulkan", "adreno", "mali"),
    "npu": ("hexagon", "htp", "ane", "neural engine", "edgetpu", "edge tpu"),
}


def _unit(value: object) -> object:
    """`GPU (OpenCL)` -> `gpu`: the unit that a name says; another value is left for the check."""
    if not isinstance(value, str):
        return value
    text = value.lower().strip()
    words = re.findall(r"[a-z]+", text)
    found = [unit for unit, names in _UNITS.items() if unit in words or any(name in text for name in names)]
    return found[0] if len(found) == 1 else value


def _believed(factor: float) -> float:
    """An anchor that is 300 times off is refused, so nothing that was learnt from anchors is beyond these ends."""
    if not 1 / MOST_LEARNT <= factor <= MOST_LEARNT:
        raise ValueError(f"no own measurements that are believed change a prediction {MOST_LEARNT:g} times or more")
    return factor


MOST_LEARNT = 1e3
Learnt = Annotated[Factor, AfterValidator(_believed)]
Unit = Annotated[Literal["cpu", "gpu", "npu"], BeforeValidator(_unit)]
Level = Literal["exact row", "calibrated", "scaled from another device", "fitted", "spec only"]


if TYPE_CHECKING:  # the arguments of the calls below are checked as those of every pydantic model
    from pydantic._internal._model_construction import ModelMetaclass as _Asked
else:

    class _Asked(type(Spec)):
        """So that a wrong argument of a call is told as a wrong key of a file is: in one line, as a `SpecError`."""

        def __call__(cls, **values: object) -> Spec:
            return cls.decode(values, where=cls.__name__)


class Workload(Spec, metaclass=_Asked):
    """One inference of an encoder or vision model, by name or by the features that model_features.csv has.

    `model` alone is enough for a known model; features given beside it win. `precision` is a name of the data files or
    of a scheme: fp32, fp16, float, int8, static_int8, dynamic_int8, w8a8, w8a16. Counts end in `_m` (10^6) or start
    with `g` (10^9); n_ops counts layers of the model, `graph_layers` those of the compiled graph where it is known.
    """

    model: str | None = Field(default=None, description="a key of model_features.csv or a model of the latency rows")
    runtime: str = Field(default="litert", description="litert, tflite, qnn, onnx, coreml, rknn, ncnn, paddle_lite")
    unit: Unit = "cpu"
    precision: str = "fp32"
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    gmacs: Positive | None = None
    dw_gmacs: NotNegative | None = Field(default=None, description="of gmacs, those of depthwise convolutions")
    params_m: Positive | None = None
    act_in_m: NotNegative | None = Field(default=None, description="elements read by all layers, 10^6")
    act_out_m: NotNegative | None = Field(default=None, description="elements written by all layers, 10^6")
    peak_act_m: NotNegative | None = Field(default=None, description="elements alive at the worst moment, 10^6")
    n_ops: NotNegative | None = None
    n_conv: NotNegative | None = None
    n_dw: NotNegative | None = None
    graph_layers: Positive | None = None
    res: Positive | None = Field(default=None, description="side of a square input image, pixels")
    input_pixels: Positive | None = Field(default=None, description="where the input is not square")
    transformer: bool | None = Field(default=None, description="attention; None: told from n_ops and n_conv")
    soft_ops: bool | None = Field(default=None, description="layer norm, GELU or attention; None: as transformer")
    file_mb: Positive | None = None
    signatures: Annotated[int, Field(ge=1, le=10**4)] = Field(
        default=1, description="entry points, each packed by the runtime"
    )
    student: bool = Field(
        default=False, description="a file of this project's exporter: on LiteRT's CPU its plan's lines are told"
    )
    operators: Positive | None = Field(default=None, description="of a student: operators of one signature")
    linear_m: Positive | None = Field(
        default=None, description="of a student: weights of linear layers and convolutions, which are packed, 10^6"
    )
    attention_mmacs: NotNegative | None = Field(
        default=None, description="of a student: 10^6 multiply-accumulates of the scores of attention, all layers"
    )
    delegated: Fraction = Field(
        default=1.0, description="share of the work that runs on `unit`; the rest is on the CPU"
    )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.model is None and self.gmacs is None:
            raise ValueError("a workload needs `model`, or at least `gmacs`")
        if self.gmacs is not None and (self.dw_gmacs or 0.0) > self.gmacs * (1 + 1e-9):
            raise ValueError(f"dw_gmacs = {self.dw_gmacs:g} is more than gmacs = {self.gmacs:g}")
        for name in ("n_conv", "n_dw"):
            if self.n_ops and (getattr(self, name) or 0.0) > self.n_ops:
                raise ValueError(f"{name} = {getattr(self, name):g} is more than n_ops = {self.n_ops:g}")
        return self

    @classmethod
    def from_row(cls, row: Mapping[str, Any], **options: Any) -> Self:
        """A row of model_features.csv as features alone: empty cells are unknown, other columns are left out.

        Raises:
            SpecError: for a value that is not a number in range.
        """
        names = {
            "res",
            "params_m",
            "gmacs",
            "act_out_m",
            "act_in_m",
            "n_ops",
            "n_conv",
            "n_dw",
            "dw_gmacs",
            "peak_act_m",
        }
        given = {key: value for key, value in row.items() if key in names and value not in ("", None)}
        return cls.decode({**given, **options}, where=f"features of {row.get('key', 'the model')}")


class LlmWorkload(Spec, metaclass=_Asked):
    """A language model, by name or by its size; tokens are those of one request."""

    model: str | None = Field(default=None, description="a model of llm_throughput.csv")
    params_b: Positive | None = Field(default=None, description="all parameters, 10^9")
    active_params_b: Positive | None = Field(default=None, description="read for each token; None: told from the rest")
    embedding_params_b: NotNegative | None = Field(default=None, description="vocabulary x width, 10^9; None: typical")
    tied: bool = Field(default=True, description="the output layer shares the embedding's numbers")
    layers: Annotated[int, Field(ge=1, le=10**4)] | None = Field(default=None, description="None: typical of the size")
    recurrent: bool | None = Field(default=None, description="linear attention or state space beside attention")
    quant: str = "q4_0"
    backend: Unit = "cpu"
    runtime: str = "llama.cpp"
    prompt_tokens: Tokens = 256
    generated_tokens: Tokens = 64
    context_tokens: Tokens = 2048
    kv_bytes_per_token: NotNegative | None = Field(
        default=None, description="2 x layers x KV heads x head size x bytes"
    )
    file_mb: Positive | None = None

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.model is None and self.params_b is None:
            raise ValueError("a language model needs `model` or `params_b`")
        for name in ("active_params_b", "embedding_params_b"):
            if self.params_b is not None and (getattr(self, name) or 0.0) > self.params_b:
                raise ValueError(f"{name} = {getattr(self, name):g} is more than params_b = {self.params_b:g}")
        return self


class DeviceSpecs(Spec, metaclass=_Asked):
    """A device by its facts alone; each is optional, and what is missing is named in the forecast's flags.

    `cpu` is written as in device_specs.csv: `1xX3@2.91 + 4xA715@2.37 + 4xA510@1.70` (cores, GHz). A known `soc` stands
    for the facts of its chip; no forecast depends on the name of a GPU, as rates of GPUs are not stated.
    """

    name: str = "unnamed device"
    soc: str = ""
    cpu: str = ""
    one_core_fp32_gflops: Positive | None = None
    cpu_peak_fp32_gflops: Positive | None = None
    memory_bandwidth_gb_per_s: Positive | None = None
    gpu: str = ""
    npu_int8_tops: Positive | None = None
    fp16: bool | None = Field(default=None, description="ARMv8.2 half precision and dot products; None: by the core")
    ram_gb: Positive | None = None
    battery_wh: Positive | None = None


class Forecast(Prediction):
    """A prediction that says how it was made: `low` to `high` holds `confidence` of the held-out cases of its class."""

    level: Level
    device: str
    flags: tuple[str, ...] = ()
    missing: tuple[str, ...] = Field(default=(), description="facts that would make it better, by name")


def _one_of_both(value: object) -> object:
    """The workload that a file's keys mean; so that what is wrong is told of that one, not of both."""
    if isinstance(value, Workload | LlmWorkload):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("a workload is an object of its model or features, such as {'gmacs': 1.2}")
    own = set(LlmWorkload.model_fields) - set(Workload.model_fields)
    try:
        return (LlmWorkload if own & set(value) else Workload).decode(value, where="workload")
    except SpecError as error:
        raise ValueError(str(error).rstrip(".")) from None


class Anchor(Spec, metaclass=_Asked):
    """One measurement of the user's own: a workload and what `edgedistill bench` saw."""

    workload: Annotated[Workload | LlmWorkload, BeforeValidator(_one_of_both)]
    measured: Factor
    quantity: str = ""


class Calibration(Spec, metaclass=_Asked):
    """What a user's anchors say about one device: the factor to every prediction of a class, by runtime and build."""

    schema_version: Literal[1] = 1
    device: str
    runtime_build: str = Field(min_length=1, description="e.g. `litert 2.3.0 xnnpack`: another build, another factor")
    factors: Mapping[str, Learnt] = Field(description="by class: measured over predicted")
    terms: Mapping[str, Mapping[str, Learnt]] = Field(
        default={}, description="by class and term: the factor beside the class's own"
    )
    anchors: Mapping[str, Annotated[int, Field(ge=1, le=1000)]]
    spread: Mapping[str, Annotated[float, Field(ge=0, le=10)]] = Field(
        description="by class: standard deviation of log(measured/predicted)"
    )

    @model_validator(mode="after")
    def _same_classes(self) -> Self:
        if not self.factors.keys() == self.anchors.keys() == self.spread.keys() or self.terms.keys() - self.factors:
            raise ValueError("factors, anchors and spread name different classes")
        return self
