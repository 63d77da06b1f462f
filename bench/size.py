"""How well are the bytes of a file predicted before training? Family x format x scheme, predicted beside exported.

python bench/size.py                        compare (an hour on one core), and write results/size.md
python bench/size.py --fit onnx [FORMAT…]   measure what graphs cost, and rewrite edgedistill/plan/size/graphs.toml

The weights are random: sizes do not depend on what was learned. A fit solves, for each kind of file, one linear system:
the bytes of a file that are no number of the student, by the parts of its graph.
"""

import argparse
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _machine import write
from torch import nn

from edgedistill import catalog, quant
from edgedistill.plan.size import Sizer, file_size, graphs, is_decoder, student_text
from edgedistill.plan.size.numbers import File, needs_ios18, sliced
from edgedistill.specs import PerGroup, QuantScheme, Spec, WeightGrid
from edgedistill.students import StoredTensor, bert, cnn, llama, part, vit

INT8, INT4 = WeightGrid(), WeightGrid(bits=4)
GROUPS8, GROUPS4 = WeightGrid(granularity=PerGroup()), WeightGrid(bits=4, granularity=PerGroup())
TABLE = Path(graphs.__file__).with_name("graphs.toml")


class Case(NamedTuple):
    """One file to export."""

    format: str
    family: str
    config: Spec
    scheme: QuantScheme
    buckets: tuple[int, ...]


def frozen_student(case: Case) -> quant.FrozenStudent:
    """A student with random weights, no two vectors alike; static ranges observed on random inputs."""
    torch.manual_seed(0)
    plugin = catalog.load_plugin("students", case.family)
    model = part(case.family, "module").build(case.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            else:
                nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else 1.2 / parameter[0].numel() ** 0.5)
    quant.prepare(model, case.scheme, plugin.tensors(case.config)).train()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for signature in plugin.signatures(case.config, case.buckets):
            feeds = plugin.sample(case.config, signature, random)
            model(*(torch.from_numpy(feeds[port.name]) for port in signature.inputs))
    quant.freeze_observers(model)
    return quant.freeze(model.eval(), case.family, case.config, case.scheme, {})


def exported_bytes(case: Case, padded: bool = True) -> int:
    """Bytes of the exported file, without the proofs that an export ends with: they change none.

    Not `padded`: a GGUF without what fills up its header.
    """
    frozen = frozen_student(case)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "student"
        WRITERS[case.format](frozen, case.buckets, out)
        filled = _filling(out) if case.format == "gguf" and not padded else 0
        return sum(path.stat().st_size for path in (out, *out.rglob("*")) if path.is_file()) - filled


def _tflite(frozen: quant.FrozenStudent, buckets: tuple[int, ...], out: Path) -> None:
    from edgedistill.exporters.tflite.carriers import carriers
    from edgedistill.exporters.tflite.decoding import entry_points
    from edgedistill.exporters.tflite.graph import convert
    from edgedistill.exporters.tflite.shrink import shrink

    given = carriers(frozen)
    out.write_bytes(shrink(convert(frozen, entry_points(frozen, buckets), given), frozen, given))


def _onnx(frozen: quant.FrozenStudent, buckets: tuple[int, ...], out: Path) -> None:
    from edgedistill.exporters.onnx.graph import convert
    from edgedistill.exporters.onnx.packing import pack

    out.write_bytes(pack(convert(frozen, frozen.signatures(buckets)), frozen))


def _coreml(frozen: quant.FrozenStudent, buckets: tuple[int, ...], out: Path) -> None:
    from edgedistill.coreml import load
    from edgedistill.exporters.coreml.convert import Converter
    from edgedistill.exporters.coreml.describe import describe
    from edgedistill.exporters.coreml.seal import seal

    with tempfile.TemporaryDirectory() as folder:
        converter = Converter(frozen, frozen.signatures(buckets))
        raw = converter.write("fp16", Path(folder))
        seal(raw, describe(load(raw), frozen, converter.signature.name), converter.signature, out)


def _gguf(frozen: quant.FrozenStudent, buckets: tuple[int, ...], out: Path) -> None:
    from edgedistill.exporters.gguf.writing import write

    write(frozen, buckets, out)


def _filling(path: Path) -> int:
    import gguf

    reader = gguf.GGUFReader(path)
    last = reader.tensors[-1].field
    return int(reader.data_offset) - (last.offset + sum(int(part.nbytes) for part in last.parts))


WRITERS = {"tflite": _tflite, "onnx": _onnx, "coreml": _coreml, "gguf": _gguf}


# What is fitted: small students of two depths, more than one entry point, and each grid once.


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
ONE, TWO, THREE = (24,), (8, 24), (8, 16, 24)


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

    def case(config: Spec, buckets: tuple[int, ...] = ONE, scheme: QuantScheme = plain) -> Case:
        return Case(name, family, config, scheme, buckets)

    # protobuf names values by number, so a layer of a deep graph has a few bytes more: two depths that are typical
    depths = (1, 2) if name == "tflite" else (2, 6)
    if family == "bert":
        yield from (case(small_bert(n), b) for b in (ONE, TWO, *[THREE] * (name == "tflite")) for n in depths)
        yield from [case(small_bert(1, width=32), (4, 24))] * (name == "tflite")
        yield from (case(small_bert(depths[0]), TWO, scheme) for scheme in schemes[1:])
        yield from [case(small_bert(1), TWO, schemes[1])] * (name == "coreml")
    elif family == "vit":
        yield from (case(small_vit(n)) for n in depths)
    elif family == "cnn":
        yield from (case(config) for config in CNNS)
        yield from (case(CNNS[0], ONE, s) for s in schemes[1:2] if s.weights == INT4)
    elif family == "llama":
        for kind in ("llama", "qwen2", "qwen3", "gemma3"):
            yield from (
                case(small_llama(n, kind), b) for b in (ONE, TWO, *[THREE] * (name == "tflite")) for n in depths
            )
        for buckets in (ONE, TWO):
            yield case(small_llama(1, "llama", tied=False), buckets)
            yield case(small_llama(2, "gemma3", window=8, global_every=2), buckets)


def unknowns(case: Case) -> Counter[str]:
    """What the graph of a file is made of, as names of cells of graphs.toml."""
    tensors = catalog.load_plugin("students", case.family).tensors(case.config)
    entries = 1 if case.family in ("cnn", "vit") else len(case.buckets)
    ios18 = case.format == "coreml" and needs_ios18(case.scheme, is_decoder(tensors))
    file = File(case.scheme, case.buckets, ios18)
    found: Counter[str] = Counter()
    for tensor in tensors:
        for name in tensor.parts:
            if name in graphs.LABELS:
                continue
            found[f"parts {name} {'one' if entries == 1 else 'many'}"] += 1
            found[f"parts {name} further"] += max(0, entries - 2)
        for grid in graphs.grid_names(case.format, tensor, file):
            found[f"grids {grid}"] += 1
        if case.format == "tflite" and "position" in tensor.parts:
            found["slice"] += len(sliced(tensor, case.buckets))
    found["grids file ios18"] += ios18
    if case.format == "coreml" and case.scheme.activations == "static_int8":
        found["grids zero point 0"] = zero_points(frozen_student(case))
    return Counter({name: count for name, count in found.items() if count})


def counted(case: Case, tensors: list[StoredTensor]) -> int:
    """Bytes that are counted and not measured."""
    nothing = graphs.Part(one=0.0, many=0.0)
    empty = graphs.Mode(parts={name: nothing for tensor in tensors for name in tensor.parts})
    sizer = Sizer(case.format, case.scheme, case.buckets, stateful=is_decoder(tensors), mode=empty)
    piece = sizer.piece(tensors)
    if case.format != "gguf":
        return sizer.total(piece)
    # its header is filled up to a multiple of 32, so that is counted apart
    about = student_text(tensors, case.buckets, case.config, tokenizer_bytes=0)
    return (
        sizer.total(piece._replace(numbers=piece.numbers._replace(header=0)), about=-sizer.text)
        + about
        + (sizer.text + piece.numbers.header)
    )


def zero_points(frozen: quant.FrozenStudent) -> int:
    """Static grids of activations whose zero point is 0, which Core ML leaves out; layers of one input share a grid."""
    grids = [*itertools.chain.from_iterable(frozen.ranges.values()), *frozen.points.values()]
    return len({grid for grid in grids if grid.zero_point == 0})


def solve(cases: list[Case]) -> dict[str, float]:
    """Bytes of each unknown, by least squares over the exports."""
    rows, rests = [], []
    for case in cases:
        tensors = catalog.load_plugin("students", case.family).tensors(case.config)
        rests.append(exported_bytes(case, padded=False) - counted(case, tensors))
        rows.append(unknowns(case))
        print(case.format, case.family, case.scheme.label, case.buckets, rests[-1], flush=True)
    names = sorted(set(itertools.chain.from_iterable(rows)))
    matrix = np.array([[float(row[name]) for name in names] for row in rows])
    found, _, rank, _ = np.linalg.lstsq(matrix, np.array(rests, float), rcond=None)
    errors = matrix @ found - rests
    print(f"{len(cases)} files, {len(names)} unknowns, rank {rank}; largest error {np.abs(errors).max():.1f} bytes")
    return dict(zip(names, found.tolist(), strict=True))


def fit(name: str, families: list[str]) -> None:
    """Measure the graphs of one format's files, and write them beside those of the others."""
    found = {mode: dict(cells) for mode, cells in read_table().get(name, {}).items()}
    for mode, schemes in modes(name).items():
        cases = [case for family in families for case in designs(name, family, schemes)]
        found[mode] = solve(cases)
    write_table(read_table() | {name: found})


def read_table() -> dict[str, dict[str, dict[str, float]]]:
    """graphs.toml, by format, mode and unknown."""
    if not TABLE.exists():
        return {}
    graphs.formats.cache_clear()  # another fit may have written it in the meantime
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, known in graphs.formats().items():
        for mode, cells in known.items():
            flat = {f"grids {label}": value for label, value in cells.grids.items()}
            flat |= {"slice": cells.slice} if cells.slice else {}
            for part_name, one in cells.parts.items():
                flat |= {f"parts {part_name} {key}": n for key, n in one.model_dump().items() if n is not None}
            table.setdefault(name, {})[mode] = flat
    return table


def write_table(table: dict[str, dict[str, dict[str, float]]]) -> None:
    lines = [
        "# Bytes of what is in a file beside the student's numbers: written by `python bench/size.py --fit FORMAT`.",
        "# formats.FORMAT.MODE.parts.PART: in a file of one entry point, of many (two), for each further one.",
        "# grids: what a tensor adds that is not int8 per channel; slice: a table of positions that is cut.",
    ]
    for name, known in sorted(table.items()):
        for mode, cells in sorted(known.items()):
            lines += ["", f"[formats.{name}.{mode}]"]
            lines += [f"slice = {_number(cells[key])}" for key in ("slice",) if key in cells]
            lines += [f"[formats.{name}.{mode}.parts]"]
            parts: dict[str, dict[str, float]] = {}
            for cell, value in cells.items():
                if cell.startswith("parts "):
                    _, part_name, key = cell.split(" ")
                    parts.setdefault(part_name, {})[key] = value
            for part_name, one in sorted(parts.items()):
                keys = [key for key in ("one", "many", "further") if one.get(key, 0.0) or key == "one"]
                inner = ", ".join(f"{key} = {_number(one[key])}" for key in keys)
                lines.append(f'"{part_name}" = {{ {inner} }}')
            grids = {cell.removeprefix("grids "): value for cell, value in cells.items() if cell.startswith("grids ")}
            if grids:
                lines += [f"[formats.{name}.{mode}.grids]"]
                lines += [f'"{label}" = {_number(value)}' for label, value in sorted(grids.items())]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    graphs.formats.cache_clear()


def _number(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"


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
        found = file_size(case.format, tensors, case.scheme, case.buckets, config=case.config, tokenizer_bytes=0)
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
