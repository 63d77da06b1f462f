"""Which measurements belong together: a class is a runtime family, a unit and a precision, with its own coefficients.

A group within a class is one device with one build, thread count and core choice. Groups share a shape and differ in
speed; the terms of the shape are physical (the rows in `predict/data`): start, layers, multiply-accumulates,
activation traffic, weights, input. `reuse_ms` is by the root of multiply-accumulates x numbers moved: a blocked kernel
moves between the numbers there are and one for each multiply-accumulate, the more the less a layer reuses each. On
CPUs and GPUs it stands in for traffic and weights with fewer coefficients and smaller errors in five classes of five.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TERMS = (
    "start_ms", "layers_ms", "macs_ms", "depthwise_macs_ms", "activations_ms", "weights_ms", "input_ms",
    "attention_macs_ms", "soft_macs_ms", "traffic_ms", "reuse_ms",
)  # fmt: skip


class LatencyClass(NamedTuple):
    """What a class is fitted with."""

    name: str
    feature_sets: tuple[str, ...]  # of model_features.csv, first wins
    terms: tuple[str, ...]
    ridge: float  # on each group's own log coefficients; smaller: groups differ more from the class
    compiled: bool = False  # layers are those of the compiled graph, not those of the model


LAYERS_TOLD = ", layers told"  # beside each compiled class, the same rows fitted with layers told from the model's own
_CPU = ("layers_ms", "macs_ms", "depthwise_macs_ms", "reuse_ms")
_NPU = ("start_ms", "layers_ms", "macs_ms", "activations_ms", "weights_ms", "input_ms", "attention_macs_ms")
_XNNPACK = ("macs_ms", "depthwise_macs_ms", "reuse_ms")
_SMALL = ("start_ms", "layers_ms", "macs_ms", "activations_ms")
# Where the layers are told from the model's own, they say less, and the input and the reuse of numbers say more: chosen
# by nested cross-validation of the int8 class, in 26 of 30 rounds the same; float and w8a16 gain nothing by them.
_TOLD_TERMS = {
    "qualcomm npu w8a8": ("start_ms", "layers_ms", "macs_ms", "reuse_ms", "input_ms", "attention_macs_ms"),
}
_NCNN, _AIHUB, _MNV4 = "ncnn .param exact", "aihub/timm", "mnv4/coreml (reparameterised)"
# The features in `data/more`. Of LiteRT's rows of 2018 to 2020 they describe those on a CPU in float; those in int8 ran
# kernels that no build has had since, and are left to judge by, as are those on a GPU.
COLLECTED = "collected later"

# Terms and ridges were chosen by the errors of models held out by family, among 6 to 17 sets for each class. The choice
# saw all rows, so the errors of the classes with few rows (all but ncnn cpu and qualcomm) are a little too good.
_MEASURED = {
    one.name: one
    for one in (
        LatencyClass("ncnn cpu float", (_NCNN, _AIHUB, _MNV4), _CPU, 0.05),
        LatencyClass("ncnn cpu int8", (_NCNN, _AIHUB, _MNV4), ("layers_ms", "macs_ms", "reuse_ms"), 0.05),
        LatencyClass("ncnn gpu float", (_NCNN, _AIHUB, _MNV4), ("start_ms", *_CPU), 0.05),
        LatencyClass("ncnn gpu int8", (_NCNN, _AIHUB, _MNV4), ("layers_ms", "macs_ms", "reuse_ms"), 0.05),
        LatencyClass("litert cpu float", (_AIHUB, _MNV4, _NCNN, COLLECTED), _XNNPACK, 1.0),
        LatencyClass("litert cpu int8", (_MNV4, _AIHUB, _NCNN), (*_XNNPACK, "soft_macs_ms"), 0.05),
        LatencyClass("litert gpu float", (_AIHUB, _MNV4, _NCNN), (*_SMALL, "depthwise_macs_ms", "soft_macs_ms"), 1.0),
        LatencyClass("qualcomm npu float", (_AIHUB, _MNV4, _NCNN), _NPU, 0.03, compiled=True),
        LatencyClass("qualcomm npu w8a8", (_AIHUB, _MNV4, _NCNN), _NPU[:-2], 0.03, compiled=True),
        LatencyClass("qualcomm npu w8a16", (_AIHUB, _MNV4, _NCNN), _NPU, 0.03, compiled=True),
        LatencyClass("edgetpu int8", (_MNV4, _AIHUB, _NCNN), (*_SMALL, "depthwise_macs_ms", "soft_macs_ms"), 0.3),
        LatencyClass("coreml ane float", (_MNV4, _AIHUB, _NCNN), ("start_ms", "macs_ms", "traffic_ms"), 0.05),
        LatencyClass("paddle cpu float", (_MNV4, _AIHUB, _NCNN, COLLECTED), ("layers_ms", "macs_ms"), 1.0),
        LatencyClass("rockchip npu int8", (_AIHUB, COLLECTED), ("macs_ms", "reuse_ms"), 1.0),
        LatencyClass("paddle cpu int8", (_MNV4, _AIHUB, _NCNN), ("layers_ms", "macs_ms"), 1.0),
    )
}  # fmt: skip
CLASSES = {
    **_MEASURED,
    **{
        f"{n}{LAYERS_TOLD}": one._replace(name=f"{n}{LAYERS_TOLD}", terms=_TOLD_TERMS.get(n, one.terms))
        for n, one in _MEASURED.items()
        if one.compiled
    },
}

_FAMILIES = (
    ("precompiled", "qnn"), ("torchscript_onnx_tflite", "litert"), ("torchscript", "qnn"), ("qnn", "qnn"),
    ("paddle", "paddle"), ("ncnn", "ncnn"), ("coreml", "coreml"), ("core ml", "coreml"), ("litert", "litert"),
    ("tflite", "litert"), ("xnnpack", "litert"), ("executorch", "litert"), ("onnx", "onnx"), ("ort", "onnx"),
    ("snpe", "qnn"), ("rknn", "rknn"), ("tensorflow lite", "litert"), ("mlperf", "mlperf"),
)  # fmt: skip


def family_of(runtime: str) -> str:
    """The runtime family of a runtime's name as the data files or a user write it; empty when it is none of ours."""
    text = runtime.lower()
    return next((family for start, family in _FAMILIES if start in text), "")


def precision_of(precision: str) -> str:
    """float, int8 (weights and activations), dynamic_int8 (activations made int8 at run time), w8a16."""
    text = precision.lower().replace("-", "_").replace(" ", "_")
    if "w8a16" in text:
        return "w8a16"
    if "dynamic" in text or "wi8" in text or text == "weight_only_int8":
        return "dynamic_int8"
    return "int8" if re.search(r"int8|w8a8|uint8", text) else "float"


def precision_known(precision: str) -> bool:
    """Whether a precision's name is one that the data or a scheme uses."""
    text = precision.lower()
    return precision_of(precision) != "float" or any(word in text for word in ("fp", "float", "f32", "f16", "half"))


def class_of(runtime: str, unit: str, precision: str, soc: str = "", npu_tops: float | None = None) -> str:
    """The class a measurement belongs to, or an empty string when there is none.

    Qualcomm's NPU is reached from LiteRT, ONNX Runtime and QNN alike: the runtime is then the build within the class.
    An NPU of another vendor is taken as Qualcomm's, or as Rockchip's where its TOPS are nearer to theirs.
    """
    family, kind = family_of(runtime), precision_of(precision)
    if unit == "npu":
        return _npu_class(family, kind, soc.lower(), npu_tops)
    if family == "onnx" and unit == "cpu":
        family = "litert"
    name = f"{family} {unit} {'int8' if kind != 'float' else 'float'}"
    return name if name in CLASSES else (f"{family} {unit} float" if f"{family} {unit} float" in CLASSES else "")


ROCKCHIP = re.compile(r"rockchip|\brk[13]\d{3}|\brv1\d{3}")
_QUALCOMM = re.compile(r"qualcomm|snapdragon|\b(?:qc[ms]|qrb|msm|apq|s[adm]+)\d{3}")
# Half way, in the log, from the most of the Rockchip chips that were measured (3) to the least of Qualcomm's (15).
FEW_TOPS = 6.7


def _npu_class(family: str, kind: str, soc: str, tops: float | None) -> str:
    if family in ("", "ncnn", "paddle"):  # these reach no NPU
        return ""
    if family == "rknn":  # Rockchip's own runtime, on no other chip; of a device without a chip's name it says so
        return "rockchip npu int8" if not soc or ROCKCHIP.search(soc) else ""
    if family == "coreml" or re.search(r"\ba1\d\b|apple|bionic", soc):
        return "coreml ane float"
    if "tensor" in soc:
        return "edgetpu int8"
    if ROCKCHIP.search(soc):
        return "rockchip npu int8"
    if family in ("litert", "onnx") and tops is not None and tops < FEW_TOPS and not _QUALCOMM.search(soc):
        return "rockchip npu int8"
    if family in ("litert", "onnx", "qnn"):
        return f"qualcomm npu {'w8a8' if kind in ('int8', 'dynamic_int8') else kind}"
    return ""
