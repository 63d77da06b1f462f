"""The predicted size against files that the exporters really write.

tests/exporters/test_contract.py compares every family and format, with schemes of every kind, at the smallest sizes;
`python bench/size.py` does it at real ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgedistill import catalog, quant
from edgedistill.errors import SpecError
from edgedistill.exporters.gguf.tokens import token_metadata
from edgedistill.exporters.gguf.writing import write
from edgedistill.plan import tflite_size
from edgedistill.plan.size import Sizer, file_size, largest, split
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import StoredTensor, bert, cnn, llama, part, vit

CONFIG = bert.Config(layers=2, width=64, heads=2, ffn=256, vocabulary=1200, max_length=24, classes=7)
DYNAMIC, STATIC = QuantScheme(), QuantScheme(activations="static_int8")
INT4, GROUPS = WeightGrid(bits=4), WeightGrid(bits=4, granularity=PerGroup())
MIXED = QuantScheme(weights=GROUPS, embeddings=INT4, layers={"layers.1.up.weight": WeightGrid()})
DECODER = llama.Config(layers=11, width=64, heads=4, kv_heads=2, head_width=32, ffn=96, vocabulary=120, tied=False)


def frozen(family: str, config: Any, scheme: QuantScheme, task: dict[str, Any] | None = None) -> quant.FrozenStudent:
    """A student with random weights: sizes do not depend on what was learned."""
    torch.manual_seed(0)
    plugin, network = catalog.load_plugin("students", family), part(family, "module").build(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # no two vectors alike, as after training
    model = quant.prepare(network, scheme, plugin.tensors(config)).train()
    signature = plugin.signatures(config, [getattr(config, "max_length", 1)])[-1]
    feeds = plugin.sample(config, signature, np.random.default_rng(0))
    model(*(torch.from_numpy(feeds[port.name]) for port in signature.inputs))
    return quant.freeze(model.eval(), family, config, scheme, task or {})


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("scheme", "buckets"), [(DYNAMIC, [8, 16, 24]), (STATIC, [24])], ids=["three", "static"])
def test_a_tflite_is_predicted_within_one_percent(scheme: QuantScheme, buckets: list[int], tmp_path: Path) -> None:
    path = tmp_path / "student.tflite"
    catalog.load_plugin("exporters", "tflite").export(frozen("bert", CONFIG, scheme), buckets, path)
    predicted = tflite_size(bert.tensors(CONFIG), scheme, buckets, CONFIG).total_mb * 1e6
    assert predicted == pytest.approx(path.stat().st_size, rel=0.001)


def test_mixed_layers_of_an_onnx_are_predicted_within_one_percent(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"width": 32, "ffn": 96, "vocabulary": 150})
    path = tmp_path / "student.onnx"
    catalog.load_plugin("exporters", "onnx").export(frozen("bert", config, MIXED), [8, 24], path)
    predicted = file_size("onnx", bert.tensors(config), MIXED, [8, 24], config).total_mb * 1e6
    assert predicted == pytest.approx(path.stat().st_size, rel=0.002)


@pytest.mark.parametrize("scheme", [DYNAMIC, MIXED.model_copy(update={"layers": {}})], ids=["int8", "int4 groups"])
def test_a_gguf_is_predicted_to_the_byte(scheme: QuantScheme, tmp_path: Path) -> None:
    for family, config in (("bert", CONFIG), ("llama", DECODER)):
        path = tmp_path / f"{family}.gguf"
        write(frozen(family, config, scheme), [8, 24], path)
        tensors = catalog.load_plugin("students", family).tensors(config)
        found = file_size("gguf", tensors, scheme, [8, 24], config=config, tokenizer_bytes=0)
        assert round(found.total_mb * 1e6) == path.stat().st_size


def test_a_gguf_with_a_tokenizer_is_predicted_to_the_byte(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{n}" for n in range(96)), *(f"##{n}" for n in range(20))]
    config = CONFIG.model_copy(update={"vocabulary": len(words), "classes": 3})
    task = {"tokenizer_json": wordpiece(words), "labels": ["yes", "no", "perhaps"]}
    path = tmp_path / "student.gguf"
    write(frozen("bert", config, DYNAMIC, task), [24], path)
    bare = header_bytes(token_metadata({}, len(words), "bert"))
    spent = header_bytes(token_metadata(task, len(words), "bert")) - bare
    found = file_size(
        "gguf", bert.tensors(config), DYNAMIC, [24], config=config, tokenizer_bytes=spent, labels=task["labels"]
    )
    assert round(found.total_mb * 1e6) == path.stat().st_size


def wordpiece(words: list[str]) -> dict[str, Any]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return dict(json.loads(tokenizer.to_str()))


def header_bytes(values: dict[str, Any]) -> int:
    """GGUF: a key with its length, a type, and a value; an array has a type, a count and its items."""

    def size(value: Any) -> int:
        if isinstance(value, str):
            return 8 + len(value.encode())
        if isinstance(value, list):
            return 12 + sum(map(size, value))
        if isinstance(value, np.ndarray):
            return 12 + value.nbytes
        return 1 if isinstance(value, bool) else 4

    return sum(8 + len(key) + 4 + size(value) for key, value in values.items())


STUDENTS = {
    "bert": (bert, CONFIG),
    "vit": (vit, vit.Config(image_size=32, patch=8, layers=12, width=64, heads=2, ffn=96, classes=5)),
    "cnn": (cnn, cnn.EFFICIENTNET_LITE0),
    "llama": (llama, DECODER),
}


@pytest.mark.parametrize("family", STUDENTS)
@pytest.mark.parametrize("scheme", [QuantScheme(activations="float"), STATIC], ids=["float", "static"])
def test_pieces_add_up_to_the_whole(family: str, scheme: QuantScheme) -> None:
    """A search counts a layer once: twelve times that is what twelve layers are, names of two digits included."""
    plugin, config = STUDENTS[family]
    if scheme.activations not in getattr(plugin, "ACTIVATIONS", (scheme.activations,)):
        pytest.skip(f"a {family} has no {scheme.activations} activations")
    for name in plugin.FORMATS:
        if scheme.misfit(catalog.constants("exporters", name)["HOLDS"]) is not None:
            continue
        tensors = plugin.tensors(config)
        sizer = Sizer(name, scheme, [8, 24], config)
        whole = sizer.estimate(sizer.piece(tensors))
        outside, layers = split(tensors)
        kinds: dict[tuple[Any, ...], tuple[list[StoredTensor], int]] = {}
        for layer in layers:
            key = tuple((t.shape, t.kind, t.parts) for t in layer)
            first = kinds.get(key, ([t._replace(name=zeroed(t.name)) for t in layer], 0))
            kinds[key] = first[0], first[1] + 1
        pieces = [(sizer.piece(layer), count) for layer, count in kinds.values()]
        parts = sizer.estimate(sizer.piece(outside), pieces)
        # blocks of a cnn differ in how often they have a name, and which of them are late is not told
        tolerance = 40 if family == "cnn" else 0
        assert parts.total_mb * 1e6 == pytest.approx(whole.total_mb * 1e6, abs=tolerance + 1e-6)
        assert sizer.total(sizer.piece(outside), pieces) == round(parts.total_mb * 1e6)


def zeroed(name: str) -> str:
    stem, _, rest = name.partition(".")
    return f"{stem}.0.{rest.partition('.')[2]}"


def test_the_parts_add_up() -> None:
    size = tflite_size(bert.tensors(CONFIG), DYNAMIC, [8, 24], CONFIG)
    assert sum(size.parts_mb.values()) == pytest.approx(size.total_mb)
    assert size.parts_mb["codes"] + size.parts_mb["floats"] > 0.7 * size.total_mb


def test_a_further_signature_costs_far_less_than_the_weights() -> None:
    tensors = bert.tensors(CONFIG)
    sizes = [tflite_size(tensors, DYNAMIC, buckets, CONFIG).total_mb for buckets in ([24], [8, 24], [8, 16, 24])]
    assert sizes == sorted(sizes)
    assert sizes[2] < 1.1 * sizes[0]


def test_every_graph_that_the_plan_allows_was_measured() -> None:
    """One bucket and several, every family, format and kind of activations: nothing is guessed."""
    for plugin, config in STUDENTS.values():
        for name in plugin.FORMATS:
            about = catalog.constants("exporters", name)
            for kind in getattr(plugin, "ACTIVATIONS", ("dynamic_int8", "static_int8", "float")):
                scheme = QuantScheme(activations=kind)
                if scheme.misfit(about["HOLDS"], about.get("EXCLUDES", ())) is None:
                    for buckets in ([24], [8, 24], [8, 16, 24]):
                        assert file_size(name, plugin.tensors(config), scheme, buckets, config).total_mb > 0


def test_a_part_that_was_never_measured_is_named() -> None:
    tensors = [*bert.tensors(CONFIG), StoredTensor("adapter.weight", (8, 8), "linear", ("adapter",))]
    with pytest.raises(SpecError, match=r"bytes of 'adapter' in a tflite file are not measured"):
        tflite_size(tensors, DYNAMIC, [24], CONFIG)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(SpecError, match=r"unknown name 'tflit'.*did you mean 'tflite'"):
        largest(["tflit"], bert.tensors(CONFIG), DYNAMIC, [24], CONFIG)
