"""What a language model costs per token: the parameters each phase reads or multiplies, and the bytes it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from math import log
from typing import NamedTuple

from edgedistill.errors import SpecError, did_you_mean
from edgedistill.predict import tables
from edgedistill.predict.specs import LlmWorkload

QUANTS = ("iq1_s", "q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16")
WIDE = ("q8_0", "w8", "f16", "f32", "q6_k")
KERNELS = {"w4": "q4_0", "w8": "q8_0", "f16": "q8_0", "f32": "q8_0"}  # what llama.cpp runs where no row has the name
WIDER = {"f16": log(16 / 8.5), "f32": log(32 / 8.5)}  # bits that decode reads beside those of q8_0
# On a CPU f16 reads a prompt slower than q8_0 of the same build: 4.4 times on a Raspberry Pi 5, 3.3 times on a Pi 4.
FLOAT_PROMPT = log(3.8)
SAME = 0.05  # as far as sizes of models are rounded
LAYERS_IN = 100.0  # layers that the coefficients of layers are for
LINEAR_SHARE = 0.75  # of a recurrent model's layers: those that keep a state in place of keys and values (Qwen 3.5)
_OF_BITS = {"1": "iq1_s", "2": "q2_k", "3": "q3_k_m", "4": "q4_k_m", "5": "q5_k_m", "6": "q6_k", "8": "q8_0"}
_LLAMA = re.compile(r"(?<![a-z0-9])(?:iq|tq|q)([1-68])_(?:(0|1)|k|s|m|l|xs|xxs|nl)(?![a-z0-9])")
_FLOAT = re.compile(r"(?<![a-z0-9])(bf16|fp16|f16|float16|half|fp32|f32|float32|float)(?![0-9])")
_FOUR = re.compile(r"4[-_ ]?bit|4/8|int4|i4|w4|4w8|^q4|q4f|cq4|nf4|fp4|awq|gptq|wna8|litertlm")
_EIGHT = re.compile(r"8[-_ ]?bit|int8|i8|w8|^q8|fp8")
OUTPUT_BITS = 8.5  # a tied model's file holds the output layer once more, in q8_0 (checked on four models, within 1 %)
DEFAULT_VOCABULARY = 152_000
_SIZE = r"(\d+(?:\.\d+)?)([bm])(?![a-z0-9])"
LEAST_B, MOST_B = 1e-4, 1e5  # 10^9 parameters that a name is believed to say
NAMED = ("params_b", "active_params_b")  # of what is told, what a model's name tells


class LlmFeatures(NamedTuple):
    """Parameters in 10^9. `imputed` names what was told from the rest."""

    params_b: float
    decode_b: float  # read for each token: all but the rows of an embedding table that is only looked up
    prefill_b: float  # multiplied for each prompt token: neither embedding nor output layer
    embedding_b: float
    tied: bool
    layers: float
    recurrent_layers: float  # of layers, those with a state in place of keys and values
    kv_bytes_per_token: float
    vocabulary: float
    imputed: tuple[str, ...]

    def told(self) -> list[str]:
        """What was told, and from what, as flags."""
        of_name = "the model's name, which no table has"
        return [f"{name} told from {of_name if name in NAMED else 'the number of parameters'}" for name in self.imputed]


@cache
def known_models() -> dict[str, tables.Row]:
    """Models with public configurations, by name."""
    return {row["model"]: row for row in tables.rows("llm_facts.csv")}


@cache
def sizes() -> dict[str, float]:
    """Parameters of every model of the rows that state them, 10^9."""
    return {row["model"]: float(row["params_b"]) for row in tables.rows("llm.csv") if row["params_b"]}


def llm_features(work: LlmWorkload) -> LlmFeatures:
    """The features of a language model.

    Raises:
        SpecError: if the model is nowhere and no `params_b` is given.
    """
    row: Mapping[str, str] = known_models().get(_known_name(work.model or ""), {})
    imputed = []
    params = work.params_b or tables.number(row.get("params_b")) or _size(work.model or "")
    active = work.active_params_b or tables.number(row.get("active_params_b"))
    if params is None:
        params, read = _from_name(work.model or "")
        imputed.append("params_b")
        if active is None and read is not None:
            active = read
            imputed.append("active_params_b")
    active = active or params
    if active > params * (1 + SAME):
        raise SpecError(f"active_params_b = {active:g} is more than params_b = {params:g} of {work.model!r}.")
    # A mixture's width, layers and heads are those of a model as large as what a token reads (OLMoE, Qwen3-30B-A3B,
    # Mixtral: public configs); its experts lie beside each other.
    embedding = (
        work.embedding_params_b if work.embedding_params_b is not None else tables.number(row.get("embedding_params_b"))
    )
    if embedding is None:
        embedding = typical_embedding(active)
        imputed.append("embedding_params_b")
    tied = row["tied"] == "1" if row else work.tied
    layers = work.layers or tables.number(row.get("layers"))
    if layers is None:
        layers = typical_layers(active)
        imputed.append("layers")
    recurrent = LINEAR_SHARE * layers if work.recurrent else 0.0
    if work.recurrent is None:
        recurrent = tables.number(row.get("recurrent_layers")) or 0.0
    kv = work.kv_bytes_per_token if work.kv_bytes_per_token is not None else _times(row.get("kv_kb_per_token"), 1e3)
    if kv is None:
        kv = typical_kv(active)
        imputed.append("kv_bytes_per_token")
    decode = max(active - (0.0 if tied else embedding), 0.2 * active)
    prefill = max(active - embedding * (1 if tied else 2), 0.2 * active)
    vocabulary = tables.number(row.get("vocabulary")) or DEFAULT_VOCABULARY
    return LlmFeatures(params, decode, prefill, embedding, tied, layers, recurrent, kv, vocabulary, tuple(imputed))


def describes(work: LlmWorkload, row: Mapping[str, str]) -> bool:
    """Whether the caller gives features that are not those of the named model: then its rows are of another one."""
    own = (work.active_params_b, work.embedding_params_b, work.recurrent, work.layers)
    size = tables.number(row["params_b"]) or work.params_b
    other = work.params_b is not None and size is not None and abs(work.params_b / size - 1) > SAME
    return other or any(value is not None for value in own)


@cache
def _runtimes() -> frozenset[str]:
    return frozenset(row["runtime"].lower().split(" ")[0] for row in tables.rows("llm.csv"))


def known_runtime(runtime: str) -> bool:
    """Whether any row is of such a runtime: its first five letters, as for the rows of a chip."""
    start = runtime.lower().split(" ")[0][:5]
    return start == "gguf" or (len(start) > 2 and any(name.startswith(start) for name in _runtimes()))


def typical_embedding(params_b: float) -> float:
    """Vocabulary x width of a model of this size, 10^9: 0.26 at 10^9, 0.5 at 8 x 10^9 (public configs)."""
    return float(min(0.26 * params_b**0.33, 0.35 * params_b))


def typical_kv(params_b: float) -> float:
    """Bytes of keys and values for each token in fp16: grouped-query models, 28 kB at 1.5, 131 kB at 8 x 10^9."""
    return float(20e3 * params_b**0.9)


def typical_layers(params_b: float) -> float:
    """Layers of a model of this size: 25 at 10^9 parameters, 36 at 8 x 10^9 (public configs: 16 to 28, 32 to 36)."""
    return float(25 * params_b**0.17)


def quant_of(text: str) -> str:
    """The kernel a quantization runs as: a llama.cpp type, or `w4` and `w8` for other runtimes; `f16`, `f32`.

    llama.cpp's other types run as the measured one of as many bits (`IQ2_XS` as q2_k). Empty: not a known name.
    """
    name = re.sub(r"[- ]", "_", text.lower())
    if found := _LLAMA.search(name):
        return "q4_0" if found[1] == "4" and found[2] else _OF_BITS[found[1]]
    if _FOUR.search(name):
        return "w4"
    if found := _FLOAT.search(name):
        return "f32" if "32" in found[1] or found[1] == "float" else "f16"
    return "w8" if _EIGHT.search(name) else ""


def spec_kernel(runtime: str, quant: str, unit: str, phase: str) -> str:
    """Which kernels a runtime runs, where only specifications are known: llama.cpp's, or others of 4 or 8 bits.

    A prompt takes as long in 8 bits as in 4 but on a CPU: Rockchip states 372 tokens/s in w8a8 and 374 in w4a16.
    """
    if runtime.lower().startswith(("llama", "ollama", "gguf")):
        return "llama"
    return "wide" if quant in WIDE and (phase == "decode" or unit == "cpu") else "narrow"


def wider(unit: str, quant: str, phase: str) -> float:
    """Log of how much longer floats take than q8_0: to be read in decode, to be multiplied in a prompt on a CPU."""
    if phase == "decode":
        return WIDER.get(quant, 0.0)
    return FLOAT_PROMPT if unit == "cpu" and quant in WIDER else 0.0


def spec_effect(effects: Mapping[str, float], unit: str, kernel: str, quant: str, phase: str) -> float:
    """How much slower a quantization of llama.cpp is than its q4_0, log; others are told apart by their kernel."""
    if kernel != "llama":
        return 0.0
    own = effects.get(f"{unit}|{KERNELS.get(quant, quant)}", 0.0) - effects.get(f"{unit}|q4_0", 0.0)
    return own + wider(unit, quant, phase)


def _known_name(name: str) -> str:
    text = name.lower().split("/")[-1].replace("_", "-")
    text = re.sub(r"^llama-v3-2-", "llama-3.2-", text)
    text = re.sub(r"^llama-?v?3-1-|^llama-?3\.1[-:]", "llama-3-", re.sub(r"^llama-v3-(?=8b)", "llama-3-", text))
    text = re.sub(r"^llama3\.2[:-]", "llama-3.2-", re.sub(r"^llama2[:-]", "llama-2-", text))
    text = (
        text.replace("llama32", "llama-3.2")
        .replace("phi-3-5", "phi-3.5")
        .replace("gemma4", "gemma-4")
        .replace("gemma3-", "gemma-3-")
    )
    named = [known for known in known_models() if _begins(_plain(text), _plain(known))]
    return max(named, key=len, default=text)


def _size(name: str) -> float | None:
    """The size in the rows, of the very name or of the longest one that it begins with."""
    text = _plain(name)
    near = [known for known in sizes() if _begins(text, _plain(known))]
    return sizes().get(name) or (sizes()[max(near, key=len)] if near else None)


@cache
def _plain(name: str) -> str:
    """`Gemma3n-E2B`, `gemma_3n:e2b` -> `gemma-3n-e-2b`: without case, folder and how words are parted."""
    text = re.sub(r"[\s_:]+", "-", name.lower().split("/")[-1])
    return re.sub(r"(?<=[a-z])(?=\d)", "-", text)


def _begins(text: str, known: str) -> bool:
    return text.startswith(known) and not text[len(known) : len(known) + 1].isalnum()


def _from_name(name: str) -> tuple[float, float | None]:
    """10^9 parameters by a name as `Qwen3-30B-A3B` or `gemma-3-270m`, and those read for each token where it says so.

    Raises:
        SpecError: the name says none, or counts experts (`8x7B`), which share layers.
    """
    text = name.lower().replace("_", "-")
    found = re.findall(rf"(?<![a-df-z0-9.]){_SIZE}", text)
    read = re.findall(rf"-a{_SIZE}", text)
    if "moe" in text and len(found) > 1 and not read:  # `OLMoE-1B-7B`: what is read, then all
        found, read = found[1:], found
    total, active = (float(one[0][0]) * (1.0 if one[0][1] == "b" else 1e-3) if one else None for one in (found, read))
    if total is None or re.search(r"\dx\d", text) or not LEAST_B <= (active or total) <= total <= MOST_B:
        raise SpecError(
            f"unknown model {name!r}{did_you_mean(name, {*known_models(), *sizes()})} Or give params_b, and"
            " active_params_b where not all are read for each token."
        )
    return total, active


def _times(text: str | None, factor: float) -> float | None:
    value = tables.number(text)
    return None if value is None else value * factor
