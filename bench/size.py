"""How well are the bytes of a file predicted before training? Family x format x scheme, predicted beside exported.

python bench/size.py                        compare (an hour on one core), and write results/size.md
python bench/size.py --fit onnx [FORMAT…]   measure what graphs cost, and rewrite edgedistill/plan/size/graphs.toml

The weights are random: sizes do not depend on what was learned. A fit solves, for each kind of file, one linear system:
the bytes of a file that are no number of the student, by the parts of its graph.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from _machine import write
from _size_designs import GROUPS4, INT4, ONE, holds, small_cnn
from _size_exports import WRITERS, Case, exported_bytes
from _size_fit import fit

from edgedistill import catalog
from edgedistill.plan.size import file_size
from edgedistill.specs import QuantScheme, Spec
from edgedistill.students import bert, cnn, llama, vit

# What is compared: the smallest students, those of the default profile's size, and published networks.


def students() -> Iterator[tuple[str, str, Spec, tuple[int, ...]]]:
    """Size, family, config and buckets."""
    wide = {"width": 32, "ffn": 64}
    yield "tiny", "bert", bert.TINY.model_copy(update=wide), (8, 16)
    yield "tiny", "vit", vit.TINY.model_copy(update=wide | {"patch": 8}), (8, 16)
    yield "tiny", "cnn", cnn.TINY.model_copy(update={"head_width": 32}), (8, 16)
    yield "tiny", "llama", llama.TINY, (8, 16)
    default = {"layers": 2, "width": 128, "heads": 4, "ffn": 512, "classes": 77}
    yield "default", "bert", bert.Config(vocabulary=3000, max_length=64, **default), (16, 32, 64)
    yield "default", "vit", vit.Config(image_size=96, patch=16, **default), ONE
    rows = ((1, 3, 1, 16, 1), (4, 3, 2, 24, 2), (4, 5, 2, 40, 2), (4, 3, 2, 80, 3))
    yield "default", "cnn", small_cnn(*rows, side=96).model_copy(update={"head_width": 256, "classes": 77}), ONE
    gemma = {"layers": 6, "width": 128, "heads": 4, "kv_heads": 1, "head_width": 32, "ffn": 512, "window": 16}
    yield (
        "default",
        "llama",
        llama.Config(architecture="gemma3", vocabulary=4000, max_length=64, **gemma),
        (16, 64),
    )
    minilm = {"layers": 6, "width": 384, "heads": 12, "ffn": 1536}
    yield "real (MiniLM)", "bert", bert.Config(vocabulary=30522, max_length=128, classes=77, **minilm), (64, 128)
    deit = {"layers": 12, "width": 192, "heads": 3, "ffn": 768}
    yield "real (DeiT-tiny)", "vit", vit.Config(image_size=224, patch=16, classes=1000, **deit), ONE
    yield "real (EfficientNet-lite0)", "cnn", cnn.EFFICIENTNET_LITE0, ONE
    smol = {"layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "head_width": 64, "ffn": 1536, "vocabulary": 49152}
    yield "real (SmolLM2-135M)", "llama", llama.Config(max_length=128, rope_theta=1e5, **smol), (64, 128)


COMPARED = {
    "int8, dynamic": QuantScheme(),
    "int8, float": QuantScheme(activations="float"),
    "int8, static": QuantScheme(activations="static_int8"),
    "int4 + int8 head, float": QuantScheme(weights=INT4, activations="float"),
    "int4 groups, dynamic": QuantScheme(weights=GROUPS4, head=GROUPS4, embeddings=INT4, scale_dtype="bf16"),
}


def comparisons(formats: list[str], sizes: str) -> Iterator[tuple[str, str, Case]]:
    for size, family, config, buckets in students():
        plugin = catalog.load_plugin("students", family)
        kinds = getattr(plugin, "ACTIVATIONS", ("dynamic_int8", "static_int8", "float"))
        for label, scheme in COMPARED.items():
            redundant = label == "int8, float" and "dynamic_int8" in kinds and size != "tiny"
            for name in plugin.FORMATS:
                fits = scheme.activations in kinds and holds(name, scheme) and name in formats
                if fits and not redundant and size.startswith(sizes):
                    yield size, label, Case(name, family, config, scheme, buckets)


def compare(formats: list[str], sizes: str) -> None:
    """Export, and write predicted beside real."""
    rows: list[dict[str, Any]] = []
    for size, label, case in comparisons(formats, sizes):
        tensors = catalog.load_plugin("students", case.family).tensors(case.config)
        found = file_size(case.format, tensors, case.scheme, case.buckets, case.config, tokenizer_bytes=0)
        predicted, real = found.total_mb * 1e6, exported_bytes(case)
        graph = found.parts_mb["graph"] / found.total_mb
        rows.append(
            {
                "size": size,
                "family": case.family,
                "format": case.format,
                "scheme": label,
                "predicted_bytes": round(predicted),
                "real_bytes": real,
                "error_percent": 100 * (predicted / real - 1),
                "graph_percent": 100 * graph,
            }
        )
        print(*rows[-1].values(), flush=True)
    worst = max(abs(row["error_percent"]) for row in rows)
    lines = [
        "# Bytes of a file, predicted from config and scheme, and exported",
        "",
        f"{len(rows)} files with random weights; the largest error is {worst:.2f} %. `graph`: the share that is"
        " no number of the student. A GGUF has no tokenizer here. One entry point for images, else 2 or 3 lengths.",
        "",
        "| student | family | format | scheme | predicted, bytes | exported, bytes | error, % | graph, % |",
        "|---|---|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['size']} | {row['family']} | {row['format']} | {row['scheme']} | {row['predicted_bytes']:,} "
            f"| {row['real_bytes']:,} | {row['error_percent']:+.2f} | {row['graph_percent']:.0f} |"
        )
    write("size", {"rows": rows}, "\n".join([*lines, ""]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", nargs="+", metavar="FORMAT", choices=sorted(WRITERS), default=[])
    parser.add_argument("--formats", nargs="+", choices=sorted(WRITERS), default=sorted(WRITERS))
    parser.add_argument("--sizes", default="", help="compare students of this size only: tiny, default, real")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for wanted in options.fit:
        fit(wanted, ["bert", "vit", "cnn", "llama"])
    if not options.fit:
        compare(options.formats, options.sizes)
