"""Which GGUF architecture a student is: the names of its tensors there, the order of their rows, and its metadata.

Sources: `src/models/{llama,qwen2,qwen3,gemma3,bert}.cpp` and `src/llama-arch.cpp` of llama.cpp (as in llama-cpp-python
0.3.36), of which every architecture's logits are compared with ours in tests/exporters/gguf.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import StageError
from edgedistill.exporters.gguf.parsing import Value
from edgedistill.quant.stored import QuantizedTensor
from edgedistill.specs.base import Spec
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import bert, llama

FAMILIES: dict[str, ModuleType] = {"bert": bert, "llama": llama}
# enum llama_pooling_type: RANK applies a classifier, to the mean where its own pooling is MEAN
POOL_MEAN, POOL_RANK = 1, 4
DECODER = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "attention_post_norm": "post_attention_norm",
    "ffn_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "ffn_post_norm": "post_ffw_norm",
}
ENCODER = {
    "embeddings.word": "token_embd",
    "embeddings.norm": "token_embd_norm",
    "classifier": "cls.output",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "attention_norm": "attn_output_norm",
    "up": "ffn_up",
    "down": "ffn_down",
    "ffn_norm": "layer_output_norm",
}


class Layout(NamedTuple):
    """A student as llama.cpp sees it.

    `names` are the file's tensors by ours, in the file's order. `order` holds, for a tensor whose rows the file has in
    another order, our row of each of its rows. `zeros` are tensors that the architecture has and the student has not:
    adding them changes nothing. `metadata` is what describes the network; tokens are described elsewhere.
    """

    architecture: str
    names: dict[str, str]
    order: dict[str, NDArray[np.int64]]
    zeros: dict[str, tuple[int, ...]]
    metadata: dict[str, Value]


def layout(family: str, config: Spec, labels: Sequence[str]) -> Layout:
    """The layout of a student of one of `FAMILIES`; `labels` are the classes' names, empty for a language model.

    Raises:
        StageError: for another family, or a student that the architecture in llama.cpp computes differently.
    """
    if isinstance(config, llama.Config):
        return _decoder(config)
    if isinstance(config, bert.Config):
        return _encoder(config, labels)
    raise StageError(f"GGUF has no architecture for {family!r} students: {', '.join(FAMILIES)} can be written.")


def labels_of(task: dict[str, Any], config: Spec) -> list[str]:
    """The classes' names: those that the student was trained with, else their numbers; none for a language model."""
    if not isinstance(config, bert.Config):
        return []
    return [str(label) for label in task.get("labels") or range(config.classes)]


def described(family: str, config: Spec, scheme: QuantScheme, lengths: Sequence[int], exact: bool) -> dict[str, Value]:
    """What a file says about the student in it, so that it can be read back without anything else."""
    return {
        "edgedistill.exact": exact,
        "edgedistill.family": family,
        "edgedistill.config": json.dumps(config.model_dump(mode="json"), sort_keys=True),
        "edgedistill.scheme": json.dumps(scheme.model_dump(mode="json"), sort_keys=True),
        "edgedistill.buckets": np.array(lengths, np.uint32),
    }


def reordered(tensor: QuantizedTensor, order: NDArray[np.int64]) -> QuantizedTensor:
    """Codes and scales with their rows in another order."""
    return QuantizedTensor(tensor.codes[order], tensor.scales[order])


def _decoder(config: llama.Config) -> Layout:
    kind = config.architecture
    # llama.cpp takes 62 layers for Gemma 3 27B and then scales scores by width / heads
    if kind == "gemma3" and config.layers == 62 and config.head_width * config.heads != config.width:
        raise StageError("llama.cpp scales the attention of a gemma3 with 62 layers as the published 27B has it.")
    about = _shared(kind, config.layers, config.width, config.ffn, config.heads, config.max_length, config.vocabulary)
    about |= {
        f"{kind}.attention.head_count_kv": np.uint32(config.kv_heads),
        f"{kind}.attention.key_length": np.uint32(config.head_width),
        f"{kind}.attention.value_length": np.uint32(config.head_width),
        f"{kind}.attention.layer_norm_rms_epsilon": np.float32(config.norm_eps),
        f"{kind}.rope.dimension_count": np.uint32(config.head_width),
        f"{kind}.rope.freq_base": np.float32(config.rope_theta),
    }
    if config.window is not None:
        about |= {
            f"{kind}.attention.sliding_window": np.uint32(config.window),
            f"{kind}.attention.sliding_window_pattern": np.uint32(config.global_every),
            f"{kind}.rope.freq_base_swa": np.float32(config.local_rope_theta),
        }
    names = {tensor.name: _translate(tensor.name, DECODER) for tensor in llama.tensors(config)}
    order = {}
    if kind == "llama":  # of the four, the one whose rotary pairs are neighbours in llama.cpp
        for n in range(config.layers):
            order[f"layers.{n}.query.weight"] = _neighbours(config.heads, config.head_width)
            order[f"layers.{n}.key.weight"] = _neighbours(config.kv_heads, config.head_width)
    return Layout(kind, names, order, {}, about)


def _encoder(config: bert.Config, labels: Sequence[str]) -> Layout:
    if len(labels) != config.classes or len(set(labels)) != len(labels):
        raise StageError(f"A student with {config.classes} classes needs as many different labels, got {len(labels)}.")
    about = _shared("bert", config.layers, config.width, config.ffn, config.heads, config.max_length, config.vocabulary)
    about |= {
        "bert.attention.layer_norm_epsilon": np.float32(1e-12),
        "bert.attention.causal": False,
        "bert.pooling_type": np.uint32(POOL_RANK),
        "bert.classifier.pooling_type": np.uint32(POOL_MEAN),
        "bert.classifier.output_labels": list(labels),
        "tokenizer.ggml.token_type_count": np.uint32(1),
    }
    names = {
        tensor.name: "position_embd.weight"
        if tensor.name == "embeddings.position"
        else _translate(tensor.name, ENCODER)
        for tensor in bert.tensors(config)
    }
    return Layout("bert", names, {}, {"token_types.weight": (1, config.width)}, about)


def _shared(
    kind: str, layers: int, width: int, ffn: int, heads: int, longest: int, vocabulary: int
) -> dict[str, Value]:
    return {
        "general.architecture": kind,
        "general.type": "model",
        "general.name": f"edgedistill {kind}",
        "general.quantization_version": np.uint32(2),
        f"{kind}.vocab_size": np.uint32(vocabulary),
        f"{kind}.context_length": np.uint32(longest),
        f"{kind}.embedding_length": np.uint32(width),
        f"{kind}.block_count": np.uint32(layers),
        f"{kind}.feed_forward_length": np.uint32(ffn),
        f"{kind}.attention.head_count": np.uint32(heads),
    }


def _translate(name: str, parts: dict[str, str]) -> str:
    """`layers.0.query.bias` to `blk.0.attn_q.bias`."""
    stem, _, leaf = name.rpartition(".")
    if not stem.startswith("layers."):
        return f"{parts[stem]}.{leaf}"
    _, number, part = stem.split(".")
    return f"blk.{number}.{parts[part]}.{leaf}"


def _neighbours(heads: int, width: int) -> NDArray[np.int64]:
    """Our row of each row, where entries i and i + width / 2 of a head shall be neighbours."""
    return np.arange(heads * width).reshape(heads, 2, width // 2).swapaxes(1, 2).reshape(-1)
