"""Students that no part of a graph was measured with: small ones of shapes drawn at random, and some of 1 to 5 MB."""

import random
from collections.abc import Callable, Iterator
from typing import Any

from _size_designs import GROUPS4, INT4, holds, small_cnn
from _size_exports import Case

from edgedistill import catalog
from edgedistill.specs import QuantScheme, Spec
from edgedistill.students import bert, cnn, llama, vit

FORMATS = ("gguf", "onnx", "tflite", "coreml")
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
    if heads * width % 32:  # groups of 32 do not store rows of this length
        width = 32
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

MID: dict[str, Shapes] = {
    "bert": (bert.Config(layers=4, width=192, heads=3, ffn=640, vocabulary=7000, max_length=48, classes=21), (12, 48)),
    "vit": (vit.Config(image_size=64, patch=8, layers=5, width=160, heads=5, ffn=480, classes=40), (24,)),
    "cnn": (small_cnn((1, 3, 1, 24, 1), (5, 3, 2, 40, 2), (6, 5, 2, 72, 2), (6, 3, 2, 160, 3), side=64), (24,)),
    "llama": (
        llama.Config(
            architecture="qwen3", layers=4, width=192, heads=6, kv_heads=2, head_width=32, ffn=576, vocabulary=6000,
            max_length=96,
        ),
        (24, 96),
    ),
}  # fmt: skip


def drawn(count: int) -> Iterator[tuple[int, Case]]:
    """For each family and format `count` students, the first of them with the plain scheme; the same every time."""
    for family, shapes in FAMILIES.items():
        for name in FORMATS:
            fits = [label for label, scheme in SCHEMES.items() if _fits(family, name, scheme)]
            draw = random.Random(f"{family} {name}")
            for number in range(count if fits else 0):
                config, buckets = shapes(draw)
                label = fits[0] if number == 0 else draw.choice(fits)
                yield number, Case(name, family, config, SCHEMES[label], buckets)


def of_middle_size() -> Iterator[tuple[str, Case]]:
    """In every format with each kind of activations, and with every other matrix in 4 bits."""
    for family, (config, buckets) in MID.items():
        tensors = catalog.load_plugin("students", family).tensors(config)
        matrices = [tensor.name for tensor in tensors if tensor.kind in ("linear", "convolution")]
        dynamic = _fits(family, "coreml", SCHEMES["int8, dynamic"])
        schemes = {label: SCHEMES[label] for label in ("int8, dynamic" if dynamic else "int8, float", "int8, static")}
        mixed = ("mixed groups, dynamic", GROUPS4, "dynamic_int8") if dynamic else ("mixed int4, float", INT4, "float")
        for label, grid, kind in (mixed, ("mixed int4, static", INT4, "static_int8")):
            layers = dict.fromkeys(matrices[1::2], grid)
            schemes[label] = QuantScheme(layers=layers, activations=kind, scale_dtype="bf16")
        for name in FORMATS:
            for label, scheme in schemes.items():
                if _fits(family, name, scheme):
                    yield label, Case(name, family, config, scheme, buckets)


def _fits(family: str, name: str, scheme: QuantScheme) -> bool:
    plugin = catalog.load_plugin("students", family)
    kinds = getattr(plugin, "ACTIVATIONS", ("dynamic_int8", "static_int8", "float"))
    return name in plugin.FORMATS and scheme.activations in kinds and holds(name, scheme)
