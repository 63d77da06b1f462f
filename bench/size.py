"""How well are the bytes of a file predicted before training? Family x format x scheme, predicted beside exported.

python bench/size.py                        compare (an hour on one core), and write results/size.md
python bench/size.py --fit onnx [FORMAT…]   measure what graphs cost, and rewrite edgedistill/plan/size/graphs.toml

Both take up where they were stopped with --keep FOLDER, which keeps the exported files until an exporter changes. The
weights are random: sizes do not depend on what was learned. A fit solves, for each kind of file, one linear system:
the bytes of a file that are no number of the student, by the parts of its graph.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _machine import write
from _size_designs import GROUPS4, INT4, ONE, holds, small_cnn
from _size_exports import WRITERS, Case, Exports
from _size_fit import fit
from _size_held_out import drawn, of_middle_size

from edgedistill import catalog
from edgedistill.plan.size import file_size
from edgedistill.specs import QuantScheme, Spec
from edgedistill.students import bert, cnn, llama, vit

RESULTS = Path(__file__).parent / "results" / "size.json"
NAMED = ("kind", "size", "scheme", "family", "format")  # what tells a row

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


def comparisons() -> Iterator[tuple[str, str, Case]]:
    for size, family, config, buckets in students():
        plugin = catalog.load_plugin("students", family)
        kinds = getattr(plugin, "ACTIVATIONS", ("dynamic_int8", "static_int8", "float"))
        for label, scheme in COMPARED.items():
            redundant = label == "int8, float" and "dynamic_int8" in kinds and size != "tiny"
            for name in plugin.FORMATS:
                fits = scheme.activations in kinds and holds(name, scheme)
                if fits and not redundant:
                    yield size, label, Case(name, family, config, scheme, buckets)


def held_out() -> Iterator[tuple[str, str, Case]]:
    for number, case in drawn(6):
        yield f"drawn {number}", case.scheme.label, case
    for label, case in of_middle_size():
        yield "1 to 5 MB", label, case


def compare(formats: list[str], sizes: str, exports: Exports) -> None:
    """Export, and write predicted beside real; the rows of other formats and sizes stay as they were."""
    found = [*(("compared", *one) for one in comparisons()), *(("held out", *one) for one in held_out())]
    found = [one for one in found if one[-1].format in WRITERS]  # a LiteRT-LM bundle holds the .tflite
    rows: list[dict[str, Any]] = []
    before = {tuple(row[key] for key in NAMED): row for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]}
    for kind, size, label, case in found:
        if case.format in formats and size.startswith(sizes):
            rows.append({"kind": kind, "size": size, "scheme": label, **compared(case, exports)})
            print(*rows[-1].values(), flush=True)
        elif (kept := before.get((kind, size, label, case.family, case.format))) is not None:
            rows.append(kept)
    write("size", {"rows": rows, "files": len(found)}, "\n".join([*page(rows, len(found)), ""]))


def compared(case: Case, exports: Exports) -> dict[str, Any]:
    tensors = catalog.load_plugin("students", case.family).tensors(case.config)
    found = file_size(case.format, tensors, case.scheme, case.buckets, case.config, tokenizer_bytes=0)
    predicted, real = found.total_mb * 1e6, exports.size_of(case)
    return {
        "family": case.family,
        "format": case.format,
        "predicted_bytes": round(predicted),
        "real_bytes": real,
        "error_percent": 100 * (predicted / real - 1),
        "graph_percent": 100 * found.parts_mb["graph"] / found.total_mb,
    }


def page(rows: list[dict[str, Any]], files: int) -> Iterator[str]:
    yield from (
        "# Bytes of a file, predicted from config and scheme, and exported",
        "",
        f"{len(rows)} of the {files} files that there are to compare. Random weights. `graph`: the share that is no"
        " number of the student. A GGUF has no tokenizer here. One entry point for images, else 1 to 3 lengths.",
    )
    for kind, title in (
        ("compared", "Usual students: the smallest, those of the default profile's size, and published networks"),
        ("held out", "Held out: shapes drawn at random, and students of 1 to 5 MB, of which none was measured for it"),
    ):
        part = [row for row in rows if row["kind"] == kind]
        if not part:
            continue
        yield from ("", f"## {title}", "", f"{len(part)} files. {_errors(part)}", "")
        yield "| student | family | format | scheme | predicted, bytes | exported, bytes | error, % | graph, % |"
        yield "|---|---|---|---|--:|--:|--:|--:|"
        for row in part:
            yield (
                f"| {row['size']} | {row['family']} | {row['format']} | {row['scheme']} | {row['predicted_bytes']:,} "
                f"| {row['real_bytes']:,} | {row['error_percent']:+.2f} | {row['graph_percent']:.0f} |"
            )


def _errors(rows: list[dict[str, Any]]) -> str:
    """The largest error of each format, of files below 40 kB and of larger ones."""
    said = []
    for name in sorted({row["format"] for row in rows}):
        of = [row for row in rows if row["format"] == name]
        small = [abs(row["error_percent"]) for row in of if row["real_bytes"] < 40_000]
        large = [abs(row["error_percent"]) for row in of if row["real_bytes"] >= 40_000]
        worst = [f"{max(errors):.2f} % {what}" for errors, what in ((small, "below 40 kB"), (large, "above")) if errors]
        said.append(f"{name} {' and '.join(worst)}")
    return f"Largest errors: {'; '.join(said)}."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", nargs="+", metavar="FORMAT", choices=sorted(WRITERS), default=[])
    parser.add_argument(
        "--formats", nargs="+", choices=sorted(WRITERS), default=sorted(WRITERS), help="anew: these alone"
    )
    parser.add_argument("--sizes", default="", help="compare students of this size only: tiny, default, real, drawn, 1")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep exported files here, and use those that are")
    options = parser.parse_args()
    kept = Exports(options.keep)
    torch.set_num_threads(1)
    for wanted in options.fit:
        fit(wanted, ["bert", "vit", "cnn", "llama"], kept)
    if not options.fit:
        compare(options.formats, options.sizes, kept)
