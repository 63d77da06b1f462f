"""What one inference of a student costs, from its sizes alone, and as the workload that `edgedistill.predict` takes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

from edgedistill.errors import SpecError
from edgedistill.plan.predict import Workload as Inference
from edgedistill.plan.size.numbers import plain
from edgedistill.predict import LlmWorkload, Workload
from edgedistill.predict.specs import Unit
from edgedistill.specs import QuantScheme, Spec
from edgedistill.students import Cost

FP32_BYTES, FP16_BYTES = 4, 2
# Operators of one signature of a .tflite: 27, and 56 for each layer of a bert, which has 8 linear layers and norms. A
# convolution is one, with its bias and ReLU6.
OTHER_OPERATORS, OPERATORS_PER_LAYER = 13, 7
PRECISIONS = {"dynamic_int8": "dynamic_int8", "static_int8": "static_int8", "float": "fp32"}


class Traffic(NamedTuple):
    """Bytes that one inference moves or holds."""

    weight_bytes: int
    """Codes, scales and floats that are read; of a table of embeddings, a row for each token."""
    activation_bytes: int
    """Read and written by all layers."""
    peak_activation_bytes: int
    """The largest input and output of one layer, or the scores of attention with what they are made of."""
    kv_bytes: int
    """A decoder's keys and values of all positions seen, in fp16."""


def cost(family: ModuleType, config: Spec, length: int, seen: int | None = None) -> Cost:
    """What one inference of `length` tokens costs; `seen` (decoders): positions looked at, those tokens included.

    Raises:
        SpecError: for fewer positions seen than tokens, or `seen` of a family that keeps none.
    """
    if length < 1 or (seen is not None and seen < length):
        raise SpecError(f"a cost of {length} tokens that see {seen} positions: give length >= 1 and seen >= length.")
    found: Cost = family.cost(config, length)
    if seen is None:
        return found
    if not found.kv_elements:
        raise SpecError(f"{family.__name__} keeps no keys and values of earlier tokens: leave `seen` out.")
    decoder: Cost = family.cost(config, length, seen)
    return decoder


def traffic(family: ModuleType, config: Spec, scheme: QuantScheme, length: int, seen: int | None = None) -> Traffic:
    """Bytes moved and held by one inference. Activations are int8 in a static file, else float32.

    Raises:
        SpecError: as `cost`.
    """
    one = cost(family, config, length, seen)
    width = 1 if scheme.activations == "static_int8" else FP32_BYTES
    tensors = family.tensors(config)
    tied = not any(tensor.kind == "head" for tensor in tensors)
    weights = 0
    for tensor in tensors:
        size = plain(tensor, scheme).bytes
        if (tensor.kind == "embedding" and not tied) or "position" in tensor.parts:
            size = size * min(length, tensor.shape[0]) // tensor.shape[0]
        weights += size
    return Traffic(
        weight_bytes=weights,
        activation_bytes=(one.read_elements + one.written_elements) * width,
        peak_activation_bytes=max(one.peak_elements, 2 * one.attention_elements) * width,
        kv_bytes=one.kv_elements * (seen or length) * FP16_BYTES,
    )


def inference(
    family: ModuleType, config: Spec, scheme: QuantScheme, buckets: Sequence[int], file_bytes: int
) -> Inference:
    """One inference at the last of the buckets, as the lines of a budget are predicted from it."""
    signatures = len(family.signatures(config, buckets))
    numbers = linear_weights(family, config)
    one = cost(family, config, buckets[-1])
    return workload_of(one, numbers, scheme, file_bytes, signatures, attention_macs(config, one))


def attention_macs(config: Spec, one: Cost) -> int:
    """Multiply-accumulates of the scores of all layers: for each score as many as a head is wide."""
    if not one.attention_elements:
        return 0
    sizes = vars(config)
    wide: int = sizes.get("head_width") or sizes["width"] // sizes["heads"]
    return int(one.attention_elements * wide * sizes["layers"])


def linear_weights(family: ModuleType, config: Spec) -> int:
    """The weights that a runtime packs: those of linear layers, heads and convolutions."""
    coded = (tensor for tensor in family.tensors(config) if tensor.kind in ("linear", "head", "convolution"))
    return sum([prod(tensor.shape) for tensor in coded])


def workload_of(
    one: Cost, linear_bytes: int, scheme: QuantScheme, file_bytes: int, signatures: int, attention: int = 0
) -> Inference:
    """One inference that costs `one`, of a file with so many entry points and a byte for each of its linear weights.

    `attention`: as `attention_macs` has it.
    """
    attends = one.attention_elements > 0
    return Inference(
        macs=one.macs,
        depthwise_macs=one.depthwise_macs,
        operators=round(OTHER_OPERATORS + one.layers * (OPERATORS_PER_LAYER if attends else 1)),
        linear_bytes=linear_bytes,
        activation_bytes=(one.read_elements + one.written_elements) * FP32_BYTES,
        peak_activation_bytes=one.peak_elements * FP32_BYTES,
        file_bytes=file_bytes,
        signatures=signatures,
        activations=scheme.activations,
        transformer=attends,
        attention_macs=attention,
    )


def workload(
    family: ModuleType,
    config: Spec,
    scheme: QuantScheme,
    length: int,
    *,
    file_bytes: int | None = None,
    signatures: int = 1,
    runtime: str = "litert",
    unit: Unit = "cpu",
    threads: int = 1,
) -> Workload:
    """One inference of an encoder or image classifier, by its features.

    With `file_bytes` it is a student: `edgedistill.predict` then says of LiteRT on a CPU what a plan says.

    Raises:
        SpecError: as `cost`.
    """
    one = cost(family, config, length)
    values: dict[str, Any] = {
        "gmacs": one.macs / 1e9,
        "dw_gmacs": one.depthwise_macs / 1e9,
        "params_m": family.parameters(config) / 1e6,
        "act_in_m": one.read_elements / 1e6,
        "act_out_m": one.written_elements / 1e6,
        "peak_act_m": one.peak_elements / 1e6,
        "n_ops": one.layers,
        "n_conv": one.convolutions,
        "n_dw": one.depthwise_layers,
        "res": getattr(config, "image_size", None),
        "file_mb": None if file_bytes is None else file_bytes / 1e6,
    }
    if file_bytes is not None:  # without the file, what a plan says of it cannot be told
        weights, attention = linear_weights(family, config), attention_macs(config, one)
        plan = workload_of(one, weights, scheme, file_bytes, signatures, attention)
        values |= {"student": True, "operators": plan.operators, "linear_m": plan.linear_bytes / 1e6,
                   "attention_mmacs": attention / 1e6}  # fmt: skip
    return Workload(
        runtime=runtime,
        unit=unit,
        precision=PRECISIONS[scheme.activations],
        threads=threads,
        signatures=signatures,
        transformer=one.attention_elements > 0,
        **values,
    )


def llm_workload(
    family: ModuleType,
    config: Spec,
    scheme: QuantScheme,
    *,
    prompt_tokens: int,
    generated_tokens: int,
    file_bytes: int | None = None,
    runtime: str = "llama.cpp",
    backend: Unit = "cpu",
) -> LlmWorkload:
    """One request to a decoder: parameters, keys and values from its sizes.

    Raises:
        SpecError: if the family keeps no keys and values.
    """
    one = cost(family, config, 1, prompt_tokens + generated_tokens)
    tensors = family.tensors(config)
    table = next(tensor for tensor in tensors if tensor.kind == "embedding")
    return LlmWorkload(
        params_b=family.parameters(config) / 1e9,
        embedding_params_b=table.shape[0] * table.shape[1] / 1e9,
        tied=not any(tensor.kind == "head" for tensor in tensors),
        recurrent=False,
        quant="q4_0" if scheme.weights.bits == 4 else "q8_0",
        backend=backend,
        runtime=runtime,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        context_tokens=prompt_tokens + generated_tokens,
        kv_bytes_per_token=one.kv_elements * FP16_BYTES,
        file_mb=None if file_bytes is None else file_bytes / 1e6,
    )
