"""Small students of every architecture that llama.cpp knows, and files that are changed on purpose."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgedistill.exporters._proof import answer
from edgedistill.exporters.gguf import tokens, writing
from edgedistill.exporters.gguf.parsing import F32, Stored, Value, parse
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import bert, llama, part

INT8, INT4 = WeightGrid(), WeightGrid(bits=4)
INT8_GROUPS, INT4_GROUPS = WeightGrid(granularity=PerGroup()), WeightGrid(bits=4, granularity=PerGroup())
SCHEMES = {
    "int8": QuantScheme(),
    "int8 groups": QuantScheme(weights=INT8_GROUPS, embeddings=INT8_GROUPS, head=INT8_GROUPS),
    "int4": QuantScheme(weights=INT4, embeddings=INT4, head=INT4, activations="float"),
    "mixed": QuantScheme(
        weights=INT4_GROUPS,
        embeddings=INT8_GROUPS,
        head=INT8,
        layers={"layers.0.query.weight": INT8, "layers.1.down.weight": INT4},
        activations="float",
    ),
}
SIZES: dict[str, Any] = {"layers": 3, "width": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "vocabulary": 160}
SIZES |= {"max_length": 64, "norm_eps": 1e-6}
CONFIGS: dict[str, Any] = {
    "llama": llama.Config(head_width=32, tied=False, **SIZES),
    "llama_tied": llama.Config(head_width=16, **SIZES),
    "qwen2": llama.Config(architecture="qwen2", head_width=16, rope_theta=1e6, **SIZES),
    "qwen3": llama.Config(architecture="qwen3", head_width=32, rope_theta=1e6, **SIZES),
    "gemma3": llama.Config(architecture="gemma3", head_width=32, rope_theta=1e6, window=5, global_every=2, **SIZES),
    "bert": bert.Config(layers=3, width=64, heads=4, ffn=96, vocabulary=160, max_length=64, classes=7),
}
BUCKETS = (8, 48)


def student(name: str, scheme: str = "mixed", **task: Any) -> FrozenStudent:
    """Weights as large as trained ones, so that logits are of order 1."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    family = "bert" if name == "bert" else "llama"
    model = part(family, "module").build(config)
    for key, parameter in model.named_parameters():
        mean = 1.0 if "norm.weight" in key else 0.0
        nn.init.normal_(parameter, mean=mean, std=0.2 if parameter.dim() == 1 else 0.1)
    return freeze(model, family, config, SCHEMES[scheme], task)


def differences(frozen: FrozenStudent, runner: Any, module: nn.Module | None = None, samples: int = 6) -> list[float]:
    """Largest difference of each of some random texts, as a share of the largest logit."""
    module = frozen.to_module("float") if module is None else module
    random, found, largest = np.random.default_rng(3), [], 0.0
    for signature in runner.signatures.values():
        for _ in range(samples):
            feeds = frozen.sample(signature, random)
            expected = answer(module, feeds)
            found.append(float(np.abs(runner.run(signature.name, feeds)["logits"] - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
    return [value / largest for value in found]


def rewritten(path: Path, out: Path, change: Callable[[dict[str, Value], dict[str, Stored]], None]) -> Path:
    """A sound file with other content: `change` edits metadata and tensors in place."""
    import gguf as library

    parsed = parse(path)
    metadata, tensors = dict(parsed.metadata), dict(parsed.tensors)
    change(metadata, tensors)
    writer = library.GGUFWriter(None, str(metadata.pop("general.architecture")))
    for key, value in metadata.items():
        writing._add(library, writer, key, value)
    for name, tensor in tensors.items():
        kind = library.GGMLQuantizationType(tensor.kind)
        data = tensor.data.reshape(*tensor.shape[:-1], -1) if tensor.kind != F32 else tensor.data.view(np.float32)
        writer.add_tensor(name, data if tensor.kind != F32 else data.reshape(tensor.shape), raw_dtype=kind)
    with contextlib.closing(writer):
        writer.write_header_to_file(out)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return out


def swap(one: str, two: str) -> Callable[..., None]:
    def change(_: Any, found: dict[str, Stored]) -> None:
        found[one], found[two] = found[two], found[one]

    return change


def drop(name: str) -> Callable[..., None]:
    return lambda _, found: found.pop(name)


def twice(name: str, copied: str) -> Callable[..., None]:
    return lambda _, found: found.update({copied: found[name]})


def typed(_: Any, found: dict[str, Stored]) -> None:
    """An embedding of the first segment that is not zero."""
    data = found["token_types.weight"].data.copy()
    data[3] = 60
    found["token_types.weight"] = found["token_types.weight"]._replace(data=data)


def floated(name: str) -> Callable[..., None]:
    """The tensor's very values, left in float32."""

    def change(_: Any, found: dict[str, Stored]) -> None:
        shape = found[name].shape
        found[name] = Stored(shape, F32, np.zeros(shape, np.float32).view(np.uint8).reshape(-1))

    return change


def said(key: str, value: Value) -> Callable[..., None]:
    return lambda metadata, _: metadata.update({key: value})


def sized(**sizes: int) -> Callable[..., None]:
    """Another size in what the file says of its student."""

    def change(metadata: dict[str, Value], _: Any) -> None:
        told = json.loads(str(metadata["edgedistill.config"]))
        metadata["edgedistill.config"] = json.dumps(told | sizes)

    return change


CORPUS = [
    "How do I transfer money to my friend's account? It's urgent!",
    "I'll say that the card 1234 5678 hasn't arrived, and we've waited 12 days.",
    "naïve café Zürich señor 你好 世界 Привет мир",
    "def f(x):\n    return x ** 2\n\n\n",
] * 3
TEXTS = [*CORPUS[:4], "", " ", "\n\n  x", "Don't PANIC!!! 42.0%", "ÀÉÎõü ß", "tab\there", "a\u00a0b", "…—“quoted”"]


def byte_level(kind: str) -> dict[str, Any]:
    """A byte-level tokenizer with a published pre-tokenizer, trained on the corpus; 400 tokens or less."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    names = {name: pattern for pattern, name in tokens.PATTERNS.items()}
    built = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt-2", "smollm"))
    if kind in names:
        last = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(names[kind]), "isolated"), last])
    elif kind == "smollm":
        last = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), last])
    built.pre_tokenizer, built.decoder = last, decoders.ByteLevel()
    if kind == "qwen2":
        built.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(CORPUS, trainer)
    if kind == "llama-bpe":
        built.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    found: dict[str, Any] = json.loads(built.to_str())
    return found
