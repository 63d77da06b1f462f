"""Which small students are exported to tell the bytes of each part of a graph, for `size.py --fit`."""

from collections.abc import Iterator
from typing import Any

from _size_exports import Case

from edgedistill import catalog
from edgedistill.plan.size import graphs
from edgedistill.specs import PerGroup, QuantScheme, Spec, WeightGrid
from edgedistill.students import bert, cnn, llama, vit

INT4 = WeightGrid(bits=4)
GROUPS4 = WeightGrid(bits=4, granularity=PerGroup())


def modes(name: str) -> dict[str, list[QuantScheme]]:
    """By mode, the schemes that tell what each grid costs; the first of them is the plain one."""
    kinds = {
        "tflite": {kind: kind for kind in ("dynamic_int8", "static_int8", "float")},
        "onnx": {"float": "dynamic_int8", "static": "static_int8"},
        "coreml": {"float": "dynamic_int8", "static": "static_int8"},
        "gguf": {"any": "dynamic_int8"},
    }[name]
    found: dict[str, list[QuantScheme]] = {}
    for kind in kinds.values():
        for scheme in _schemes(kind):
            if holds(name, scheme):
                found.setdefault(graphs.mode_name(name, scheme), []).append(scheme)
    return found


def _schemes(kind: Any) -> Iterator[QuantScheme]:
    """The plain scheme, the one with 4 bits, and those in which one kind of tensor is stored differently."""
    yield QuantScheme(activations=kind)
    yield QuantScheme(weights=INT4, activations=kind)
    yield QuantScheme(embeddings=INT4, activations=kind)
    if kind != "static_int8":  # a static layer has one scale for each channel
        yield QuantScheme(weights=GROUPS4, activations=kind, scale_dtype="bf16")
    yield QuantScheme(embeddings=GROUPS4, activations=kind, scale_dtype="bf16")


def holds(name: str, scheme: QuantScheme) -> bool:
    about = catalog.constants("exporters", name)
    return scheme.misfit(about["HOLDS"], about.get("EXCLUDES", ())) is None


def small_bert(layers: int, **sizes: int) -> bert.Config:
    known = {"width": 64, "heads": 2, "ffn": 128, "vocabulary": 300, "max_length": 24, "classes": 7}
    return bert.Config(**(known | {"layers": layers} | sizes))


def small_vit(layers: int) -> vit.Config:
    return vit.Config(image_size=32, patch=8, layers=layers, width=64, heads=2, ffn=128, classes=7)


def small_llama(layers: int, architecture: Any, **sizes: Any) -> llama.Config:
    known = {"width": 64, "heads": 4, "kv_heads": 2, "head_width": 16, "ffn": 128, "vocabulary": 320, "max_length": 24}
    return llama.Config(**(known | {"layers": layers, "architecture": architecture} | sizes))


def odd_bert(layers: int, heads: int) -> bert.Config:
    return bert.Config(layers=layers, width=96, heads=heads, ffn=160, vocabulary=130, max_length=20, classes=9)


def odd_vit(layers: int, heads: int) -> vit.Config:
    return vit.Config(image_size=40, patch=8, layers=layers, width=96, heads=heads, ffn=160, classes=9)


def odd_llama(layers: int, architecture: Any, heads: int = 35, kv_heads: int = 5, **sizes: Any) -> llama.Config:
    known = {"heads": heads, "kv_heads": kv_heads, "head_width": 18, "ffn": 160, "vocabulary": 130, "max_length": 20}
    width = heads * 18 if architecture == "qwen2" else 96
    return llama.Config(**(known | {"layers": layers, "architecture": architecture, "width": width} | sizes))


def small_cnn(*rows: tuple[int, int, int, int, int], side: int = 24) -> cnn.Config:
    stages = tuple(dict(zip(cnn.Stage.model_fields, row, strict=True)) for row in rows)
    return cnn.Config.decode(
        {"image_size": side, "stem_width": 8, "stages": stages, "head_width": 24, "classes": 3}, "bench"
    )


CNNS = (
    small_cnn((1, 3, 1, 8, 1), (2, 5, 2, 12, 2)),
    small_cnn((1, 3, 1, 8, 2), (2, 5, 2, 12, 2)),
    small_cnn((1, 3, 1, 8, 1), (2, 5, 2, 12, 3)),
    small_cnn((1, 3, 1, 8, 1), (2, 5, 2, 12, 2), (2, 3, 1, 16, 1)),
    small_cnn((1, 3, 1, 8, 1), (2, 5, 2, 12, 2), (2, 3, 2, 16, 1)),
    small_cnn((1, 3, 1, 8, 1), (2, 5, 1, 12, 1)),
)
ARCHITECTURES = ("gemma3", "qwen2", "qwen3")  # beside llama
ONE, TWO = (24,), (8, 24)
# Of a .tflite all sizes differ, so that each is told by its number; the last length is that of a decoder's caches.
LENGTHS, CUT = (11, 13, 20), (2, 20)


def designs(name: str, family: str, schemes: list[QuantScheme]) -> Iterator[Case]:
    """The exports that tell the parts of one family's graph in one mode."""
    plugin = catalog.load_plugin("students", family)
    kinds = getattr(plugin, "ACTIVATIONS", ("dynamic_int8", "static_int8", "float"))
    if name != "tflite" and "dynamic_int8" not in kinds:  # elsewhere it is the same graph as float
        schemes = [
            s.model_copy(update={"activations": s.activations.replace("dynamic_int8", "float")}) for s in schemes
        ]
    plain = schemes[0]
    if name not in plugin.FORMATS or plain.activations not in kinds:
        return
    found = _in_tflite(family, schemes) if name == "tflite" and family != "cnn" else _elsewhere(name, family, schemes)
    yield from (Case(name, family, *one) for one in found)


def _in_tflite(family: str, schemes: list[QuantScheme]) -> Iterator[tuple[Spec, QuantScheme, tuple[int, ...]]]:
    plain = schemes[0]
    if family == "bert":
        yield from ((odd_bert(n, heads), plain, LENGTHS) for heads in (6, 1) for n in (1, 2))
        yield odd_bert(1, 6), plain, CUT
        yield from ((odd_bert(1, 6), scheme, LENGTHS[1:]) for scheme in schemes[1:])
    elif family == "vit":
        yield from ((odd_vit(n, heads), plain, ONE) for heads in (6, 1) for n in (1, 2))
    elif family == "llama":
        yield from ((odd_llama(n, "llama"), plain, LENGTHS) for n in (2, 3))
        # rows of whole groups of 32: what grids add to each entry point
        yield from ((odd_llama(2, "llama", 32, 4), scheme, LENGTHS) for scheme in schemes[1:])
        if plain.activations == "float":  # the other parts follow from those of dynamic files
            return
        yield from ((odd_llama(n, kind), plain, LENGTHS) for kind in ARCHITECTURES for n in (2, 3))
        yield odd_llama(4, "gemma3", window=8, global_every=2), plain, LENGTHS
        for heads, keys in ((7, 1), (5, 5), (1, 1)):
            yield from ((odd_llama(n, "llama", heads, keys), plain, LENGTHS) for n in (2, 3))
        yield odd_llama(1, "llama"), plain, LENGTHS
        yield odd_llama(2, "llama", tied=False), plain, LENGTHS


def _elsewhere(
    name: str, family: str, schemes: list[QuantScheme]
) -> Iterator[tuple[Spec, QuantScheme, tuple[int, ...]]]:
    plain, depths = schemes[0], (2, 6)  # protobuf names values by number: two depths that are typical
    if family == "bert":
        yield from ((small_bert(n), plain, b) for b in (ONE, TWO) for n in depths)
        yield from ((small_bert(depths[0]), scheme, TWO) for scheme in schemes[1:])
        yield from [(small_bert(1), schemes[1], TWO)] * (name == "coreml")
    elif family == "vit":
        yield from ((small_vit(n), plain, ONE) for n in depths)
    elif family == "cnn":
        yield from ((config, plain, ONE) for config in CNNS)
        yield from (
            (config, s, ONE) for s in schemes[1:2] if s.weights == INT4 for config in (CNNS[0], CNNS[2], CNNS[3])
        )
    elif family == "llama":
        for kind in ("llama", *ARCHITECTURES):
            yield from ((small_llama(n, kind), plain, b) for b in (ONE, TWO) for n in depths)
        for buckets in (ONE, TWO):
            yield small_llama(1, "llama", tied=False), plain, buckets
            yield small_llama(2, "gemma3", window=8, global_every=2), plain, buckets
