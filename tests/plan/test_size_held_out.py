"""Sizes of students that no part of a graph was measured with: shapes drawn at random, and exported for real.

The files are written by the exporters' own steps, without the proofs that an export ends with, as `bench/size.py` does.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgedistill import catalog
from edgedistill.plan.size import file_size
from edgedistill.specs import PerGroup, QuantScheme, Spec, WeightGrid
from edgedistill.students import bert, cnn, llama, vit

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from _size_exports import Case, exported_bytes

INT4, GROUPS4 = WeightGrid(bits=4), WeightGrid(bits=4, granularity=PerGroup())
SCHEMES = {
    "int8, dynamic": QuantScheme(),
    "int8, float": QuantScheme(activations="float"),
    "int4, float": QuantScheme(weights=INT4, activations="float"),
    "int4 embedding, dynamic": QuantScheme(embeddings=INT4),
    "int4 groups, dynamic": QuantScheme(weights=GROUPS4, head=GROUPS4, embeddings=INT4, scale_dtype="bf16"),
    "int8, static": QuantScheme(activations="static_int8"),
    "int4, static": QuantScheme(weights=INT4, activations="static_int8"),
}
Shapes = tuple[Spec, tuple[int, ...]]


def a_bert(draw: random.Random) -> Shapes:
    heads, longest = draw.choice((1, 2, 4)), draw.choice((16, 20, 32))
    buckets = tuple(sorted(draw.sample(range(2, longest + 1), draw.choice((1, 2, 3)))))
    sizes = {"width": 32 * draw.choice((1, 2, 3)), "ffn": 32 * draw.choice((1, 2, 3, 5))}
    if sizes["width"] % heads:
        heads = 1
    return bert.Config(
        layers=draw.randint(1, 3), heads=heads, vocabulary=draw.randint(90, 400), max_length=longest,
        classes=draw.randint(2, 9), **sizes,
    ), buckets  # fmt: skip


def a_vit(draw: random.Random) -> Shapes:
    heads, patch = draw.choice((1, 2, 4)), 8
    return vit.Config(
        image_size=patch * draw.choice((2, 3, 4)), patch=patch, layers=draw.randint(1, 3), heads=heads,
        width=32 * draw.choice((1, 2)), ffn=32 * draw.choice((1, 2, 3, 5)), classes=draw.randint(2, 9),
    ), (24,)  # fmt: skip


def a_cnn(draw: random.Random) -> Shapes:
    rows = [
        {"expansion": draw.randint(1, 4), "kernel": draw.choice((3, 5)), "stride": draw.choice((1, 2)),
         "width": 8 * draw.randint(1, 4), "repeats": draw.randint(1, 3)}
        for _ in range(draw.randint(1, 4))
    ]  # fmt: skip
    given = {"image_size": draw.choice((24, 32, 40)), "stem_width": 8, "stages": rows, "head_width": 32, "classes": 5}
    return cnn.Config.decode(given, "test"), (24,)


def a_llama(draw: random.Random) -> Shapes:
    kind, keys, width = draw.choice(("llama", "qwen2", "qwen3", "gemma3")), draw.choice((1, 2)), draw.choice((16, 32))
    heads, longest = keys * draw.choice((1, 2, 3)), draw.choice((16, 24, 40))
    sizes: dict[str, Any] = {"width": 32 * draw.choice((1, 2, 3))}
    if kind == "qwen2":
        heads, keys, width, sizes = 4, 2, 16, {"width": 64}
    if kind == "gemma3" and draw.random() < 0.5:
        sizes |= {"window": 6, "global_every": 2}
    buckets = tuple(sorted(draw.sample(range(2, longest + 1), draw.choice((1, 2)))))
    return llama.Config(
        architecture=kind, layers=draw.randint(1, 3), heads=heads, kv_heads=keys, head_width=width, max_length=longest,
        ffn=32 * draw.choice((2, 3, 5)), vocabulary=draw.randint(90, 400), tied=draw.random() < 0.7, **sizes,
    ), buckets  # fmt: skip


FAMILIES: dict[str, Callable[[random.Random], Shapes]] = {
    "bert": a_bert, "vit": a_vit, "cnn": a_cnn, "llama": a_llama,
}  # fmt: skip


def drawn(count: int) -> list[Any]:
    """For each family and format `count` students, the first of them with the plain scheme; the same every time."""
    found = []
    for family, shapes in FAMILIES.items():
        plugin = catalog.load_plugin("students", family)
        for name in ("gguf", "onnx", "tflite", "coreml"):
            about = catalog.constants("exporters", name)
            fits = [
                label for label, scheme in SCHEMES.items()
                if name in plugin.FORMATS and scheme.misfit(about["HOLDS"], about.get("EXCLUDES", ())) is None
                and scheme.activations in getattr(plugin, "ACTIVATIONS", ("dynamic_int8", "static_int8", "float"))
            ]  # fmt: skip
            draw = random.Random(f"{family} {name}")
            for number in range(count if fits else 0):
                config, buckets = shapes(draw)
                label = fits[0] if number == 0 else draw.choice(fits)
                # a decoder takes 15 s in TFLite, all the others of the first round about 40 s together
                slow = number > 0 or (family, name) == ("llama", "tflite")
                found.append(pytest.param(
                    Case(name, family, config, SCHEMES[label], buckets),
                    id=f"{family}-{name}-{number}", marks=[pytest.mark.slow] if slow else [],
                ))  # fmt: skip
    return found


@pytest.mark.parametrize("case", drawn(6))
def test_a_student_of_any_shape_is_predicted_within_one_percent(case: Any) -> None:
    tensors = catalog.load_plugin("students", case.family).tensors(case.config)
    found = file_size(case.format, tensors, case.scheme, case.buckets, case.config, tokenizer_bytes=0)
    told = f"{case}: a graph that changed is measured anew by: python bench/size.py --fit {case.format}"
    assert found.total_mb * 1e6 == pytest.approx(exported_bytes(case), rel=0.01), told
