"""Solve what each part of a graph costs, from the bytes of exported files, for `size.py --fit`."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from _size_designs import ARCHITECTURES, designs, modes
from _size_exports import Case, Exports, frozen_student
from _size_graphs import lines_of, model_of, signatures, with_entries
from _size_table import Cells, Lines, read_table, write_table

from edgedistill import catalog, quant
from edgedistill.exporters.tflite.decoding import derived_tables
from edgedistill.plan.size import Sizer, graphs, student_text
from edgedistill.plan.size.numbers import File, needs_ios18, sliced
from edgedistill.students import StoredTensor

# What a convolution comes out as, its kernel, which a float file makes floats first, and its bias; a static file has
# grids that no two tensors share.
CONVOLUTIONS: dict[str, Lines] = {
    "float": {
        "cnn": {"each": ["float 1 side side channels", "float first kernel kernel last", "shape channels"]},
        "cnn.pad": {"each": ["float 1 side side channels"]},
    },
    "static_int8": {
        "cnn": {"each": ["shape 1 side side channels", "shape first kernel kernel last", "shape channels"]},
        "cnn.pad": {"each": ["shape 1 side side channels"]},
    },
}

SYMMETRIC = ("query", "key", "value")


class Row(NamedTuple):
    """One equation: how often a file has each unknown, and the bytes that they are."""

    case: Case
    counts: Counter[str]
    rest: float


def unknowns(case: Case, lines: Lines) -> Counter[str]:
    """What the graph of a file is made of, as names of cells of graphs.toml."""
    tensors = tensors_of(case)
    entries = 1 if case.family in ("cnn", "vit") else len(case.buckets)
    ios18 = case.format == "coreml" and needs_ios18(case.scheme, case.config)
    file = File(case.scheme, case.buckets, ios18)
    whole = case.format == "tflite" and graphs.fills_caches(case.config, case.buckets)
    known = known_parts(case, lines)
    found: Counter[str] = Counter()
    for tensor in tensors:
        parts = graphs.parts_of(case.format, tensor, file, case.config)
        for name in graphs.all_parts(parts, known, case.config):
            found += Counter({f"parts {name} {key}": n for key, n in _shares(entries, whole).items()})
        for grid in graphs.grid_names(case.format, tensor, file) if parts == tensor.parts else ():
            found[f"grids {grid}"] += 1
        if case.format == "tflite" and "position" in tensor.parts:
            found["slice"] += len(sliced(tensor, case.buckets))
    found["grids file ios18"] += ios18
    if case.format == "coreml" and case.scheme.activations == "static_int8":
        found["grids zero point 0"] = zero_points(frozen_student(case))
    return Counter({name: count for name, count in found.items() if count})


def _shares(entries: int, whole: bool) -> dict[str, int]:
    """How often a part's bytes of each kind are in a file: `Part.bytes`, the other way round."""
    if whole:
        return {"whole": 1} if entries == 1 else {**_shares(entries - 1, False), "beside": 1}
    return {"one": 1} if entries == 1 else {"many": 1, "further": entries - 2}


def known_parts(case: Case, lines: Lines) -> graphs.Mode:
    """The parts of a student's graph without their bytes, special ones included where they are fitted."""
    file = File(case.scheme, case.buckets)
    names = {
        name for tensor in tensors_of(case) for name in graphs.parts_of(case.format, tensor, file, case.config)
    } - graphs.LABELS
    if case.format == "tflite":
        names |= {special for name in names for special in graphs.special_parts(name, case.config)}
    return graphs.Mode(parts={name: graphs.Part(one=0.0, many=0.0, **lines.get(name, {})) for name in names})


def tensors_of(case: Case) -> list[StoredTensor]:
    found: list[StoredTensor] = catalog.load_plugin("students", case.family).tensors(case.config)
    return found


def counted(case: Case, lines: Lines) -> int:
    """Bytes that are counted and not measured."""
    sizer = Sizer(case.format, case.scheme, case.buckets, case.config, mode=known_parts(case, lines))
    piece = sizer.piece(tensors_of(case))
    if case.format != "gguf":
        return sizer.total(piece)
    # its header is filled up to a multiple of 32, so that is counted apart
    about = student_text(tensors_of(case), case.buckets, case.config, tokenizer_bytes=0)
    return (
        sizer.total(piece._replace(numbers=piece.numbers._replace(header=0)), about=-sizer.text)
        + about
        + (sizer.text + piece.numbers.header)
    )


def zero_points(frozen: quant.FrozenStudent) -> int:
    """Static grids of activations whose zero point happens to be 0, which Core ML leaves out.

    Layers of one input share a grid. A transformer's norms, queries, keys and values, and its mean, always have 0: what
    that saves belongs to their layer.
    """
    before = [grids[0] for grids in frozen.ranges.values()]
    after = [grids[1] for name, grids in frozen.ranges.items() if name.rsplit(".", 1)[-1] not in SYMMETRIC]
    points = [grid for name, grid in frozen.points.items() if not name.endswith(("norm.point", "pool", "pool.point"))]
    return len({grid for grid in (*before, *after, *points) if grid.zero_point == 0})


def rows_of(case: Case, lines: Lines, exports: Exports) -> Iterator[Row]:
    """The file, and of a .tflite also what it would be with fewer entry points."""
    if case.format != "tflite":
        yield Row(case, unknowns(case, lines), exports.size_of(case, padded=False) - counted(case, lines))
        return
    data = exports.bytes_of(case)
    names = signatures(model_of(data))
    prompts = [number for number, name in enumerate(names) if name != "decode"]
    always = [number for number, name in enumerate(names) if name == "decode"]
    for count in range(1, len(prompts) + 1):
        for kept in itertools.combinations(prompts, count):
            if not always and prompts[-1] not in kept:  # shorter ones cut their positions from the longest
                continue
            size = len(with_entries(data, [*kept, *always])) if len(kept) < len(prompts) else len(data)
            part = case._replace(buckets=tuple(case.buckets[number] for number in kept))
            yield Row(part, unknowns(part, lines), size - counted(part, lines))


def solve(rows: list[Row]) -> dict[str, float]:
    """Bytes of each unknown, by least squares over the exports."""
    names = sorted(set(itertools.chain.from_iterable(row.counts for row in rows)))
    matrix = np.array([[float(row.counts[name]) for name in names] for row in rows])
    found, _, rank, _ = np.linalg.lstsq(matrix, np.array([row.rest for row in rows], float), rcond=None)
    errors = matrix @ found - [row.rest for row in rows]
    for row, error in zip(rows, errors, strict=True):
        print(row.case.family, row.case.config, row.case.scheme.label, row.case.buckets, f"{error:+.0f}", flush=True)
    print(f"{len(rows)} files, {len(names)} unknowns, rank {rank}; largest error {np.abs(errors).max():.1f} bytes")
    return dict(zip(names, found.tolist(), strict=True))


def lines_in(case: Case, exports: Exports) -> Lines:
    """The tensors of a .tflite that are no weights, by part and by the entry points that have them."""
    if case.format == "tflite" and case.family == "cnn":
        return CONVOLUTIONS[case.scheme.activations]
    if case.format != "tflite":
        return {}
    data = exports.bytes_of(case)
    derived = {table.tobytes() for table in derived_tables(frozen_student(case))}
    names = signatures(model_of(data))
    found = {name: lines_of(data, number, case.config, derived) for number, name in enumerate(names)}
    top, *more = [name for name in tensors_of(case)[0].parts if name not in graphs.LABELS]
    kinds = {"each": found[names[0]]}
    if "decode" in found:
        kinds |= {"longest": found[names[-2]], "once": found["decode"]}
    if more:  # a window, whose lines are those that are not the network's
        return {more[0]: kinds}
    return {top: kinds}


def _add_architectures(solved: Cells, found: Lines, dynamic: Cells, tensors: Lines) -> None:
    """Decoders of float files: one network was measured, and those of the others differ from it as dynamic ones do."""
    for cell, value in dynamic.items():
        whole, _, key = cell.removeprefix("parts ").rpartition(" ")
        top, dot, rest = whole.partition(".")
        if top in ARCHITECTURES and rest != "window":
            base = f"parts llama{dot}{rest} {key}"
            solved.setdefault(cell, value + solved[base] - dynamic[base])
        elif top.startswith("decoder") or rest == "window":
            solved.setdefault(cell, value)
    for part, kinds in tensors.items():
        if part in ARCHITECTURES:
            found.setdefault(part, {
                kind: sorted({*of} | {*found["llama"][kind]} - {*tensors["llama"][kind]}) for kind, of in kinds.items()
            })  # fmt: skip
        elif part.endswith(".window"):
            found.setdefault(part, kinds)


def fit(name: str, families: list[str], exports: Exports) -> None:
    """Measure the graphs of one format's files, and write them beside those of the others."""
    cells, lines = read_table()
    for mode, schemes in modes(name).items():
        cases = [case for family in families for case in designs(name, family, schemes)]
        found: Lines = {}
        for case in cases:  # the first of each network is the one without anything special
            if {name for name in tensors_of(case)[0].parts if name not in graphs.LABELS} - found.keys():
                for part, kinds in lines_in(case, exports).items():
                    found.setdefault(part, kinds)
        for part in [part for part in found if part.endswith(".window")]:
            whole = found[part.split(".")[0]]
            found[part] = {kind: sorted({*of} - {*whole[kind]}) for kind, of in found[part].items()}
        solved = solve([row for case in cases for row in rows_of(case, found, exports)])
        for cell in [cell for cell in solved if name == "tflite" and cell.endswith(" many")]:
            stem = cell.removesuffix("many")  # where three were not measured, a third adds what the second does
            solved.setdefault(f"{stem}further", solved[cell] - solved[f"{stem}one"])
        if name == "tflite" and mode == "float":
            _add_architectures(solved, found, cells[name]["dynamic_int8"], lines[name]["dynamic_int8"])
        cells.setdefault(name, {})[mode] = solved
        lines.setdefault(name, {})[mode] = found
    write_table(cells, lines)
