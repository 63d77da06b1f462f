"""The network of the `llama` family, in plain torch: the float function that training, freezing and exports share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from edgedistill.data.tensors import Outputs
from edgedistill.students.llama import Config

# Keys and values of one layer [batch, kv_heads, slots, head_width]; slot n holds position n.
Cache = tuple[Tensor, Tensor]
# Cosines and sines [positions, head_width / 2] of the angles that positions turn queries and keys by.
Rotation = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019), in plain operators.

    `weight` is the whole gain: 1 + w where a published Gemma stores w.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Same shape."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Write(nn.Module):
    """A copy of a cache with new keys or values from slot `position` on; what would come behind the last is left out.

    A gather and a select, which every converter knows. A module, so that an exporter can put its runtime's own there.
    """

    def forward(
        self,
        slots: Float[Tensor, "batch heads slots width"],
        new: Float[Tensor, "batch heads new width"],
        position: Int[Tensor, " 1"],
    ) -> Float[Tensor, "batch heads slots width"]:
        """Same shape as `slots`."""
        offset = torch.arange(slots.shape[2], device=slots.device) - position
        source = new.index_select(2, offset.clamp(0, new.shape[2] - 1))
        inside = (offset >= 0) & (offset < new.shape[2])
        return torch.where(inside[:, None], source, slots)


class Layer(nn.Module):
    """Self-attention and gated feed-forward, each on a normalised copy of the stream that it adds to."""

    def __init__(self, config: Config, number: int) -> None:
        super().__init__()
        width, ffn, eps = config.width, config.ffn, config.norm_eps
        inner, keys = config.heads * config.head_width, config.kv_heads * config.head_width
        self.kv_heads, self.head_width, self.local = config.kv_heads, config.head_width, config.local(number)
        self.groups = config.heads // config.kv_heads
        self.tanh_gelu = config.architecture == "gemma3"
        self.attention_norm = RMSNorm(width, eps)
        self.query = nn.Linear(width, inner, bias=config.biases)
        self.key = nn.Linear(width, keys, bias=config.biases)
        self.value = nn.Linear(width, keys, bias=config.biases)
        self.output = nn.Linear(inner, width, bias=False)
        self.query_norm = RMSNorm(config.head_width, eps) if config.head_norms else None
        self.key_norm = RMSNorm(config.head_width, eps) if config.head_norms else None
        self.attention_post_norm = RMSNorm(width, eps) if config.post_norms else None
        self.ffn_norm = RMSNorm(width, eps)
        self.gate = nn.Linear(width, ffn, bias=False)
        self.up = nn.Linear(width, ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)
        self.ffn_post_norm = RMSNorm(width, eps) if config.post_norms else None
        self.write_keys, self.write_values = Write(), Write()

    def forward(
        self,
        x: Float[Tensor, "batch new width"],
        rotation: Rotation,
        bias: Float[Tensor, "new seen"],
        cache: Cache | None = None,
        position: Int[Tensor, " 1"] | None = None,
    ) -> tuple[Float[Tensor, "batch new width"], Cache]:
        """One layer, and the keys and values it used: the new ones, or a cache with the new ones written to it.

        `bias` is 0 where a token may look and very negative where not. `position` is that of the first token; it is
        given exactly when `cache` is.
        """
        attended, cache = self._attend(self.attention_norm(x), rotation, bias, cache, position)
        x = x + _maybe(self.attention_post_norm, attended)
        inner = self.ffn_norm(x)
        gate = self.gate(inner)
        gate = nn.functional.gelu(gate, approximate="tanh") if self.tanh_gelu else nn.functional.silu(gate)
        return x + _maybe(self.ffn_post_norm, self.down(gate * self.up(inner))), cache

    def _attend(
        self, x: Tensor, rotation: Rotation, bias: Tensor, cache: Cache | None, position: Tensor | None
    ) -> tuple[Tensor, Cache]:
        batch, new, _ = x.shape

        def heads(t: Tensor) -> Tensor:
            return t.view(batch, new, -1, self.head_width).transpose(1, 2)

        q = rotate(_maybe(self.query_norm, heads(self.query(x))), rotation)
        k = rotate(_maybe(self.key_norm, heads(self.key(x))), rotation)
        v = heads(self.value(x))
        if cache is not None and position is not None:
            k, v = self.write_keys(cache[0], k, position), self.write_values(cache[1], v, position)
        # the heads that share keys become further rows of one product, so that keys are never copied
        q = q.reshape(batch, self.kv_heads, self.groups * new, self.head_width)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(self.head_width)).view(
            batch, self.kv_heads, self.groups, new, k.shape[2]
        )
        weights = (scores + bias).softmax(-1).view(batch, self.kv_heads, self.groups * new, k.shape[2])
        mixed = (weights @ v).reshape(batch, self.kv_heads * self.groups, new, self.head_width)
        return self.output(mixed.transpose(1, 2).reshape(batch, new, -1)), (k, v)


class Decoder(nn.Module):
    """Token ids to the logits of the next token at every position; `pooled` are the final normalised states."""

    MASK_BIAS = -1e4  # representable in fp16, and exp() of it is exactly 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        # first, so that a tied weight is stored under this name
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Outputs:
        """All positions of texts of equal length, without a cache."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self._run(input_ids, positions, positions, None, None)[0]

    def step(
        self, input_ids: Int[Tensor, "batch new"], position: Int[Tensor, " 1"], caches: Sequence[Cache]
    ) -> tuple[Outputs, list[Cache]]:
        """The next `new` tokens (a whole prompt, or one) of texts whose first `position` tokens `caches` hold.

        Answers the outputs at the new tokens, and caches that hold them too; those given stay as they are. The caller
        sees to it that the caches have the slots: `position + new <= slots`.
        """
        positions = position + torch.arange(input_ids.shape[1], device=input_ids.device)
        slots = torch.arange(caches[0][0].shape[2], device=input_ids.device)
        return self._run(input_ids, positions, slots, caches, position)

    def empty_caches(self, batch: int = 1, slots: int | None = None) -> list[Cache]:
        """A cache for each layer, with `max_length` slots unless told; what a slot holds before its token is unread."""
        slots = self.config.max_length if slots is None else slots
        shape = batch, self.config.kv_heads, slots, self.config.head_width
        like = self.embedding.weight
        return [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(self.config.layers)]

    def _run(
        self, ids: Tensor, positions: Tensor, seen: Tensor, caches: Sequence[Cache] | None, position: Tensor | None
    ) -> tuple[Outputs, list[Cache]]:
        config = self.config
        x = self.embedding(ids)
        if config.architecture == "gemma3":
            x = x * math.sqrt(config.width)
        distance = positions[:, None] - seen[None]
        bias = self._bias(distance < 0)
        everywhere = rotation_of(positions, config.head_width, config.rope_theta), bias
        nearby = everywhere
        if config.window is not None:
            bias = self._bias((distance < 0) | (distance >= config.window))
            nearby = rotation_of(positions, config.head_width, config.local_rope_theta), bias
        kept = []
        for number, layer in enumerate(self.layers):
            cache = None if caches is None else caches[number]
            x, cache = layer(x, *(nearby if config.local(number) else everywhere), cache, position)
            kept.append(cache)
        x = self.norm(x)
        return Outputs(self.head(x), x), kept

    def _bias(self, hidden: Bool[Tensor, "new seen"]) -> Float[Tensor, "new seen"]:
        return hidden.to(self.norm.weight.dtype) * self.MASK_BIAS


def rotation_of(positions: Int[Tensor, " new"], head_width: int, theta: float) -> Rotation:
    """Angle `position * theta^(-2 i / head_width)` for pair i of a head (Su et al. 2021), as cosine and sine."""
    angles = positions.float()[:, None] * speeds(head_width, theta).to(positions.device)
    return angles.cos(), angles.sin()


def speeds(head_width: int, theta: float) -> Float[Tensor, " pairs"]:
    """What each further position adds to the angle of each pair of a head."""
    pairs = torch.arange(0, head_width, 2).float()
    return 1.0 / theta ** (pairs / head_width)


def derived(config: Config) -> list[Float[Tensor, " pairs"]]:
    """The tables that a graph of the network holds beside the student's tensors: they follow from its sizes."""
    thetas = (config.rope_theta,) if config.window is None else (config.rope_theta, config.local_rope_theta)
    return [speeds(config.head_width, theta) for theta in thetas]


def rotate(x: Float[Tensor, "batch heads new width"], rotation: Rotation) -> Float[Tensor, "batch heads new width"]:
    """Turn each pair of a head, entry i and entry i + width / 2, by its position's angle."""
    cosine, sine = rotation
    a, b = x.chunk(2, -1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1)


def _maybe(norm: nn.Module | None, x: Tensor) -> Tensor:
    out: Tensor = x if norm is None else norm(x)
    return out


def build(config: Config) -> Decoder:
    """Random weights: linear layers normal with deviation 0.7/sqrt(inputs), embeddings 0.02, biases 0, norms 1."""
    model = Decoder(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not (name == "head" and config.tied):
            nn.init.normal_(module.weight, std=0.7 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.embedding.weight, std=0.02)
    return model
