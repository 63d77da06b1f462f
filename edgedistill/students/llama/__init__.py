"""Decoder-only language model: RMS norms before each block, rotary positions, grouped-query attention, gated FFN.

`architecture` is one of four published networks, of which every size is free:

- `llama` (Touvron et al. 2023): the plain one; SmolLM2 and TinyLlama are Llamas;
- `qwen2` (Yang et al. 2024): biases on queries, keys and values;
- `qwen3` (Yang et al. 2025): no biases, an RMS norm on each head's queries and keys;
- `gemma3` (Gemma Team 2025): that too, scaled embeddings, norms after each block, GELU, and local layers that look back
  over `window` positions with a rotary base of their own; every `global_every`-th layer sees everything.

Rotary position embedding: Su et al. 2021; grouped queries: Ainslie et al. 2023; gated feed-forward: Shazeer 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from edgedistill.specs import Spec
from edgedistill.students import Cost, Port, Signature, StoredTensor, remembered

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("coreml", "gguf", "litertlm", "onnx", "tflite")
# The formats that hold a decoder quantize activations at run time or not at all; no ranges are learned.
ACTIVATIONS = ("dynamic_int8", "float")
Count = Annotated[int, Field(ge=1)]
Base = Annotated[float, Field(gt=1, allow_inf_nan=False)]

# What `plan --search` looks through: every combination.
SPACE = {
    "layers": (2, 4, 6, 8, 12, 16, 20, 24, 30),
    "width": (128, 192, 256, 320, 384, 512, 576, 768, 1024),
    "heads": (4, 8, 9, 16),
    "kv_heads": (2, 3, 4),
    "head_width": (32, 64),
    "ffn_ratio": (2, 3, 4),
    "vocabulary": (4000, 8000, 16000, 32000, 49152),
}


class Config(Spec):
    """Sizes of the student. `head_width` is free of `width` but for qwen2, `window` and what follows are gemma3's."""

    architecture: Literal["llama", "qwen2", "qwen3", "gemma3"] = "llama"
    layers: Annotated[int, Field(ge=1, le=256)]
    width: Annotated[int, Field(ge=8, le=16384)]
    heads: Count
    kv_heads: Count
    head_width: Annotated[int, Field(ge=2, multiple_of=2)]
    ffn: Count
    vocabulary: Count = 32000
    max_length: Count = 512
    rope_theta: Base = 10000.0
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    tied: bool = Field(default=True, description="the head is the embedding table, stored once")
    window: Count | None = Field(
        default=None, description="gemma3: positions that a local layer sees, its own included"
    )
    global_every: Count = Field(default=6, description="gemma3: the period of the layers that see everything")
    local_rope_theta: Base = 10000.0

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}")
        if self.architecture == "qwen2" and self.heads * self.head_width != self.width:
            raise ValueError(
                f"a qwen2 has width = heads * head_width, {self.heads * self.head_width}, not {self.width}"
            )
        if self.architecture != "gemma3" and self.window is not None:
            raise ValueError(f"window belongs to architecture gemma3, not {self.architecture}")
        return self

    @property
    def biases(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.architecture == "qwen2"

    @property
    def head_norms(self) -> bool:
        """Whether each head's queries and keys are normalised."""
        return self.architecture in ("qwen3", "gemma3")

    @property
    def post_norms(self) -> bool:
        """Whether what a block adds to the stream is normalised first."""
        return self.architecture == "gemma3"

    def local(self, layer: int) -> bool:
        """Whether layer number `layer` (from 0) sees only the last `window` positions."""
        return self.window is not None and (layer + 1) % self.global_every != 0


TINY = Config(layers=2, width=32, heads=4, kv_heads=2, head_width=16, ffn=64, vocabulary=96, max_length=16)


@remembered
def tensors(config: Config) -> list[StoredTensor]:
    """Every tensor of the student, named as in its state dict; a tied head is the embedding, no tensor of its own."""
    w, f, d = config.width, config.ffn, config.head_width
    kind = config.architecture
    about = ("decoder", kind, *[f"{kind}.window"] * (config.window is not None))
    found = [StoredTensor("embedding.weight", (config.vocabulary, w), "embedding", about)]
    for n in range(config.layers):
        name = f"layers.{n}"
        found.append(_norm(f"{name}.attention_norm", w, f"{kind}.layer"))
        for part, heads in (("query", config.heads), ("key", config.kv_heads), ("value", config.kv_heads)):
            found.append(StoredTensor(f"{name}.{part}.weight", (heads * d, w), "linear"))
            found += [StoredTensor(f"{name}.{part}.bias", (heads * d,), "float", ("bias",))] * config.biases
        found.append(StoredTensor(f"{name}.output.weight", (w, config.heads * d), "linear"))
        found += [_norm(f"{name}.{part}_norm", d) for part in ("query", "key") if config.head_norms]
        found += [_norm(f"{name}.attention_post_norm", w)] * config.post_norms
        found.append(_norm(f"{name}.ffn_norm", w))
        for part, shape in (("gate", (f, w)), ("up", (f, w)), ("down", (w, f))):
            found.append(StoredTensor(f"{name}.{part}.weight", shape, "linear"))
        found += [_norm(f"{name}.ffn_post_norm", w)] * config.post_norms
    found.append(_norm("norm", w))
    head = StoredTensor("head.weight", (config.vocabulary, w), "head", ("decoder.head",))
    return found if config.tied else [*found, head]


def signatures(config: Config, buckets: Sequence[int]) -> tuple[Signature, ...]:
    """One entry point `length_N` per bucket: N ids to the logits of the token that follows each of them.

    Raises:
        ValueError: if there is no bucket, or one is not between 1 and `max_length`.
    """
    return tuple(
        Signature(
            f"length_{n}",
            (Port("input_ids", (1, n), "int32"),),
            (Port("logits", (1, n, config.vocabulary), "float32"),),
        )
        for n in _lengths(config, buckets)
    )


def generation(config: Config, buckets: Sequence[int]) -> tuple[Signature, ...]:
    """Entry points of a file whose caller keeps keys and values: `prefill_N` for each bucket, and `decode`.

    `tokens` [1, N] are at the positions `input_pos` [N], which count up from the first. `kv_cache_k_L` and
    `kv_cache_v_L` [1, kv_heads, max_length, head_width] of each layer L hold the tokens before. Both answer the caches
    with the new tokens in them; `decode`, which takes one token, also the `logits` [1, 1, vocabulary] of the next.
    Tokens behind the last slot are left out, and a slot to which no token was written is not read: a caller may fill up
    a piece of a prompt with any tokens, and gives the caches that come back to the next call.

    Raises:
        ValueError: as `signatures`.
    """
    shape = (1, config.kv_heads, config.max_length, config.head_width)
    caches = tuple(Port(f"kv_cache_{part}_{n}", shape, "float32") for n in range(config.layers) for part in "kv")

    def takes(n: int) -> tuple[Port, ...]:
        return Port("tokens", (1, n), "int32"), Port("input_pos", (n,), "int32"), *caches

    logits = Port("logits", (1, 1, config.vocabulary), "float32")
    prefill = (Signature(f"prefill_{n}", takes(n), caches) for n in _lengths(config, buckets))
    return *prefill, Signature("decode", takes(1), (logits, *caches))


def _lengths(config: Config, buckets: Sequence[int]) -> list[int]:
    lengths = sorted(set(buckets))
    if not lengths or lengths[0] < 1 or lengths[-1] > config.max_length:
        raise ValueError(f"length buckets {list(buckets)} must be between 1 and max_length = {config.max_length}")
    return lengths


def sample(config: Config, signature: Signature, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Random ids as long as the signature; a shorter text is its beginning, as no token sees the next.

    For a signature of `generation`, ids that begin at any position, and caches of random numbers.
    """
    import numpy as np

    ids = random.integers(0, config.vocabulary, signature.inputs[0].shape).astype(np.int32)
    feeds: dict[str, NDArray[Any]] = {signature.inputs[0].name: ids}
    start = int(random.integers(0, config.max_length)) if len(signature.inputs) > 1 else 0
    for port in signature.inputs[1:]:
        if port.name == "input_pos":
            feeds[port.name] = np.arange(start, start + ids.size, dtype=np.int32)
        else:
            feeds[port.name] = random.standard_normal(port.shape, np.float32)
    return feeds


def parameters(config: Config) -> int:
    """Number of trained values."""
    return sum(prod(tensor.shape) for tensor in tensors(config))


def macs(config: Config, length: int) -> int:
    """Multiply-accumulates of a text of `length` tokens, every logit included.

    Scores of positions that a mask hides are counted: the network computes them.
    """
    inner, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    linear = 2 * config.width * (inner + keys) + 3 * config.width * config.ffn
    attention = 2 * length * inner
    return length * (config.layers * (linear + attention) + config.width * config.vocabulary)


def cost(config: Config, length: int, seen: int | None = None) -> Cost:
    """What `length` new tokens cost where `seen` positions are looked at, their own included; by default `length`.

    A prompt is `cost(config, length)`, one more token after it `cost(config, 1, length + 1)`.
    """
    n, positions = length, length if seen is None else seen
    w, f, d, deep = config.width, config.ffn, config.head_width, config.layers
    inner, keys = config.heads * d, config.kv_heads * d
    normed = 2 * w + config.post_norms * 2 * w + config.head_norms * (inner + keys)
    read = n * (deep * (normed + 3 * w + inner + 2 * w + f) + 2 * w)
    written = n * (deep * (normed + inner + 2 * keys + w + 2 * f + w) + w + config.vocabulary)
    linear = 2 * w * (inner + keys) + 3 * w * f
    table = config.vocabulary * w
    return Cost(
        macs=n * (deep * (linear + 2 * positions * inner) + table),
        depthwise_macs=0,
        read_elements=read,
        written_elements=written,
        peak_elements=n * max(w + f, w + inner, 2 * w, 2 * inner * config.head_norms, w + config.vocabulary),
        layers=2 + deep * (9 + 2 * config.post_norms + 2 * config.head_norms),
        convolutions=0,
        depthwise_layers=0,
        # a tied table is read whole, as the head; one of its own by rows
        weights=parameters(config) if config.tied else parameters(config) - table + n * w,
        attention_elements=config.heads * n * positions,
        kv_elements=2 * deep * keys,
    )


def _norm(name: str, width: int, *parts: str) -> StoredTensor:
    return StoredTensor(f"{name}.weight", (width,), "float", parts)
