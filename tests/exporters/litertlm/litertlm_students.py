"""Small decoders that speak: a tokenizer, a chat template, and weights as large as trained ones."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgedistill.exporters.litertlm.parsing import parse
from edgedistill.exporters.litertlm.reading import model_of
from edgedistill.exporters.litertlm.speech import speech_of
from edgedistill.exporters.litertlm.writing import write
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import llama, part

BUCKETS = (8,)
CORPUS = (
    "First, let us begin: the last shall be first and the first shall be last!",
    "What is 2 < 3? Say it. Hello there! Name a colour. Blue. Another 'one', \"please\". Answer in one word.",
    "the quick brown fox jumps over the lazy dog, 0123456789 times",
)
GROUPS = WeightGrid(bits=4, granularity=PerGroup())
SCHEME = QuantScheme(weights=GROUPS, head=GROUPS, scale_dtype="bf16")
SIZES: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_width": 16, "ffn": 64}
SIZES |= {"vocabulary": 150, "max_length": 30}
OWN: dict[str, dict[str, Any]] = {
    "llama": {"tied": False},
    "qwen2": {"heads": 2, "rope_theta": 1e6},
    "qwen3": {"rope_theta": 1e6},
    "gemma3": {"window": 5, "global_every": 2},
}
# as published ones are: the content of a message is taken for a text, and the first token comes from a variable
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@functools.cache
def _tokenizer() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    built.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False))
    built.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return str(built.to_str())


def tokenizer() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_tokenizer())
    return found


def decoder(architecture: Any, scheme: QuantScheme = SCHEME, **task: Any) -> FrozenStudent:
    torch.manual_seed(0)
    config = llama.Config(**{**SIZES, **OWN[architecture], "architecture": architecture})
    model = part("llama", "module").build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                nn.init.normal_(parameter, mean=1, std=0.1)
            else:
                nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else 1.2 / parameter.shape[1] ** 0.5)
    given = {"tokenizer_json": tokenizer(), "chat_template": TEMPLATE, "special_tokens": {"eos": "<|im_end|>"}}
    return freeze(model, "llama", config, scheme, given | task)


def rewritten(frozen: FrozenStudent, source: Path, out: Path, **changes: Any) -> Path:
    """The bundle `source` with its own model, and what `frozen` says about texts, changed."""
    with model_of(source, parse(source)) as model:
        write(frozen, speech_of(frozen)._replace(**changes), model, out)
    return out
