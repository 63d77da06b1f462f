"""Published weights: the names and values of transformers' Llama, Qwen2, Qwen3 and Gemma 3 text models, as ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from edgedistill.errors import SpecError, TeacherError
from edgedistill.students.llama import Config, tensors
from edgedistill.students.llama.module import Decoder, build

Architecture = Literal["llama", "qwen2", "qwen3", "gemma3"]
ARCHITECTURES: dict[str, Architecture] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# ours to theirs, within a layer
PARTS = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
# a Gemma norms the attention's output too, and calls that one what a Llama calls the norm before the FFN
GEMMA_PARTS = {
    "attention_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}


class Loaded(NamedTuple):
    """A student with published weights, float32, named as in its state dict."""

    config: Config
    weights: dict[str, Tensor]

    def build(self) -> Decoder:
        """The network with these weights, in eval mode."""
        model = build(self.config)
        model.load_state_dict(self.weights)
        return model.eval()


def from_huggingface(state: Mapping[str, Tensor], config: Mapping[str, Any], max_length: int | None = None) -> Loaded:
    """The student that computes what transformers computes from a state dict and the content of its config.json.

    `max_length` shortens the longest text, as no weight depends on it.

    Raises:
        TeacherError: another architecture, a variant of one that ours does not compute (rotary scaling among them), or
            tensors that are missing, unknown or of another shape.
    """
    sizes = _config(config, max_length)
    named = {_their_name(tensor.name, sizes): tensor for tensor in tensors(sizes)}
    # a file may hold the tied head once more, and an old one the rotary frequencies, which follow from the config
    extra = {
        name for name in state if name.endswith("rotary_emb.inv_freq") or (sizes.tied and name == "lm_head.weight")
    }
    if state.keys() - extra != named.keys():
        odd = ", ".join(sorted((state.keys() - extra) ^ named.keys())[:3])
        raise TeacherError(f"the weights are not those of this {sizes.architecture} config: missing or unknown: {odd}.")
    weights = {}
    for name, tensor in named.items():
        value = state[name].detach().to(torch.float32)
        if tuple(value.shape) != tensor.shape:
            raise TeacherError(f"{name} has shape {list(value.shape)}, the config says {list(tensor.shape)}.")
        gain = sizes.architecture == "gemma3" and name.endswith("norm.weight")
        weights[tensor.name] = value + 1.0 if gain else value.clone()
    if sizes.tied:
        weights["head.weight"] = weights["embedding.weight"]
    return Loaded(sizes, weights)


def from_folder(folder: Path, max_length: int | None = None) -> Loaded:
    """The same from a folder with config.json and safetensors files; nothing else in it is opened.

    Raises:
        TeacherError: as above, or a file is missing or damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = [WEIGHTS]
        if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
            names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        if not all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
            raise TeacherError(f"{folder / INDEX}: names files that are not safetensors files of the folder.")
        state: dict[str, Tensor] = {}
        for name in names:
            state |= safetensors.torch.load_file(folder / name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise TeacherError(f"{folder}: not a model folder with config.json and {WEIGHTS}: {error}.") from None
    if not isinstance(config, dict):
        raise TeacherError(f"{folder / 'config.json'}: not a JSON object.")
    return from_huggingface(state, config, max_length)


def _their_name(ours: str, sizes: Config) -> str:
    if not ours.startswith("layers."):
        return {"embedding.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}.get(
            ours, f"model.{ours}"
        )
    _, number, part, leaf = ours.split(".")
    parts = PARTS | (GEMMA_PARTS if sizes.architecture == "gemma3" else {})
    return f"model.layers.{number}.{parts[part]}.{leaf}"


def _config(values: Mapping[str, Any], max_length: int | None) -> Config:
    """Our sizes. transformers' own class completes what a config.json leaves out, and moves old keys to new ones."""
    from transformers import AutoConfig

    kind = values.get("model_type")
    if kind not in ARCHITECTURES:
        raise TeacherError(f"the model is a {kind!r}; decoders that can be loaded: {', '.join(ARCHITECTURES)}.")
    try:
        about = AutoConfig.for_model(kind, **{key: value for key, value in values.items() if key != "model_type"})
    except (ValueError, TypeError, KeyError) as error:
        raise TeacherError(f"config.json: transformers cannot read it: {error}.") from None
    architecture = ARCHITECTURES[kind]
    rope = about.rope_parameters
    gemma = {}
    if architecture == "gemma3":
        gemma = _locality(about)
        rope = rope["full_attention"]
    wrong = _variants(about, architecture, rope)
    if wrong:
        raise TeacherError(f"a {kind!r} model with {', '.join(wrong)} computes what a student cannot.")
    longest = about.max_position_embeddings
    try:
        return Config(
            architecture=architecture,
            layers=about.num_hidden_layers,
            width=about.hidden_size,
            heads=about.num_attention_heads,
            kv_heads=about.num_key_value_heads,
            head_width=getattr(about, "head_dim", None) or about.hidden_size // about.num_attention_heads,
            ffn=about.intermediate_size,
            vocabulary=about.vocab_size,
            max_length=longest if max_length is None else min(longest, max_length),
            rope_theta=rope["rope_theta"],
            norm_eps=about.rms_norm_eps,
            tied=about.tie_word_embeddings,
            **gemma,
        )
    except (ValueError, SpecError) as error:
        raise TeacherError(f"config.json: not a model that a student can be: {error}.") from None


def _locality(about: Any) -> dict[str, Any]:
    """Window, period and rotary base of a Gemma's local layers."""
    kinds = list(about.layer_types)
    local = about.rope_parameters["sliding_attention"]
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
    regular = ["full_attention" if (n + 1) % every == 0 else "sliding_attention" for n in range(len(kinds))]
    if kinds != regular or local["rope_type"] != "default" or (every > 1 and not about.sliding_window):
        raise TeacherError("a Gemma 3 whose local layers are not periodic, or scale their positions, cannot be loaded.")
    found = {"global_every": every, "local_rope_theta": local["rope_theta"]}
    return found if every == 1 else found | {"window": about.sliding_window}


def _variants(about: Any, architecture: Architecture, rope: Mapping[str, Any]) -> list[str]:
    """What the config asks for and our network does not compute."""
    activation = about.hidden_activation if architecture == "gemma3" else about.hidden_act
    expected = "gelu_pytorch_tanh" if architecture == "gemma3" else "silu"
    head_width = getattr(about, "head_dim", None)
    asked = {
        f"rope_type = {rope['rope_type']!r} (rotary scaling)": rope["rope_type"] != "default",
        f"activation {activation!r}": activation != expected,
        "attention_bias": bool(getattr(about, "attention_bias", False)),
        "mlp_bias": bool(getattr(about, "mlp_bias", False)),
        "use_sliding_window": bool(getattr(about, "use_sliding_window", False)),
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "logit softcapping": bool(
            getattr(about, "final_logit_softcapping", None) or getattr(about, "attn_logit_softcapping", None)
        ),
        "bidirectional attention": bool(getattr(about, "use_bidirectional_attention", False)),
        "query_pre_attn_scalar": getattr(about, "query_pre_attn_scalar", head_width) != head_width,
    }
    return [name for name, present in asked.items() if present]
