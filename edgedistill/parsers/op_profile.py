"""Where operators ran: benchmark_model's operator profile, as printed or as CSV, and its lines about delegates."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, lines_of, number
from edgedistill.specs import Placement, Spec

# By what stands in the name of a node, a kernel or a delegate; the first that fits.
UNITS = (
    (r"gpu|opencl|opengl|vulkan|metal|webgpu", "gpu"),
    (r"hexagon|htp|qnn|qualcomm|dsp", "npu (Qualcomm)"),
    (r"neuron|mediatek|mdla", "npu (MediaTek)"),
    (r"edgetpu|darwinn|google_?tensor", "npu (Google)"),
    (r"ethos|armnn|vx_?delegate|\bnpu", "npu"),
    (r"coreml", "Core ML"),
    (r"nnapi", "NNAPI"),
    (r"xnnpack|\((?:nhwc|nc|nd|any)[ ,)]", "cpu (XNNPACK)"),
)
_DELEGATED = re.compile(
    r"Replacing (\d{1,9}) (?:out of (\d{1,9}) )?node\(s\) with delegate \(([^)]{1,80})\)"
    r"(?: node, yielding (\d{1,9}) partitions?)?"
)
_APPLIED = re.compile(
    r"Explicitly applied (\S{1,80}) delegate, and the model graph will be (completely|partially) executed"
    r"(?: by the delegate)?(?: w/ (\d{1,9}) delegate kernels)?"
)
_ROW = re.compile(
    rf"^\s*(\S.*?)\s+(?:{NUMBER}\t\s*)?({NUMBER})\s+({NUMBER})\s+({NUMBER})%\s+({NUMBER})%\s+({NUMBER})\s+(\d{{1,9}})"
    r"(?:\s+(\S.*?))?\s*$"
)
SECTION = re.compile(r"^\s*=+ (Run Order|Top by Computation Time|Top by Memory Use|Summary by node type) =+\s*$")


class Operator(Spec):
    """One node of a profile; `time_ms` is the average of one call, `calls` per inference."""

    kind: str
    name: str
    time_ms: float
    calls: int


class Delegation(Spec):
    """What a delegate took of a graph; None where it is not told. `complete`: the whole graph."""

    delegate: str
    nodes: int | None
    of_nodes: int | None
    partitions: int | None
    complete: bool


def parse(text: str) -> tuple[Operator, ...]:
    """The operators of a profile that stands alone, as text or as CSV.

    Raises:
        DataError: there are none.
    """
    lines = lines_of(text)
    found = _from_csv(lines) or operators(lines)
    if not found:
        raise DataError("no operator profile: give --enable_op_profiling=true to benchmark_model")
    return found


def operators(lines: Sequence[str]) -> tuple[Operator, ...]:
    """The nodes in the order they ran, of the inferences and not of the initialization; empty without a profile."""
    regular, section, rows = False, "", list[Operator]()
    wanted = any("Profiling Info for" in line for line in lines)  # of both, or of none
    for line in lines:
        if "Profiling Info for" in line:
            regular = "Regular" in line
        elif head := SECTION.match(line):
            section = head[1]
        elif section == "Run Order" and (regular or not wanted) and (row := _ROW.match(line)):
            kind, name = row[1].strip(), (row[8] or "").strip()
            rows.append(Operator(kind=kind, name=name, time_ms=_time(row[3]), calls=int(row[7])))
    return tuple(rows)


def delegations(lines: Sequence[str]) -> tuple[Delegation, ...]:
    """Every line about a delegate that was applied, in order."""
    found = []
    for line in lines:
        if seen := _DELEGATED.search(line):
            nodes, total = int(seen[1]), int(seen[2]) if seen[2] else None
            parts = int(seen[4]) if seen[4] else None
            found.append(Delegation(
                delegate=seen[3], nodes=nodes, of_nodes=total, partitions=parts, complete=total == nodes
            ))  # fmt: skip
        elif seen := _APPLIED.search(line):
            parts = int(seen[3]) if seen[3] else None
            found.append(Delegation(
                delegate=seen[1], nodes=None, of_nodes=None, partitions=parts, complete=seen[2] == "completely"
            ))  # fmt: skip
    return tuple(found)


def placement(rows: Sequence[Operator], delegated: Sequence[Delegation]) -> tuple[Placement, ...]:
    """Operators and time by compute unit. A delegate that runs as one node counts as the operators that it replaced."""
    total = sum(row.time_ms * row.calls for row in rows)
    if not rows or total <= 0:
        return ()
    names = {item.delegate for item in delegated}
    only = names.pop() if len(names) == 1 else ""
    units: dict[str, tuple[int, float]] = {}
    for row in rows:
        unit = unit_of(row, only)
        count, spent = units.get(unit, (0, 0.0))
        replaced = [item.nodes for item in delegated if item.nodes and item.partitions == 1]
        opaque = row.kind.lower().endswith(("delegate", "delegatev2", "delegatekernel")) and len(replaced) == 1
        units[unit] = (count + (replaced[0] if opaque else 1), spent + row.time_ms * row.calls)
    return tuple(
        Placement(unit=unit, operators=count, time_ms=spent, time_share=min(1.0, spent / total))
        for unit, (count, spent) in sorted(units.items(), key=lambda item: -item[1][1])
    )


def unit_of(row: Operator, delegate: str = "") -> str:
    """The compute unit that a node ran on, by its kind; a kernel inside a delegate is named `Delegate/...`, and is the
    only `delegate`'s that was applied, else XNNPACK's. An operator of TFLite's own is the CPU's.
    """
    inside = row.name.lower().startswith("delegate/")
    for text in (row.kind, delegate if inside else ""):
        for pattern, unit in UNITS:
            if text and re.search(pattern, text.lower()):
                return unit
    return "cpu (XNNPACK)" if inside else "cpu"


def _from_csv(lines: Sequence[str]) -> tuple[Operator, ...]:
    """`node type, first, avg_ms, %, cdf%, mem KB, times called, name`, the first such table."""
    heads = [[cell.strip().lower() for cell in line.split(",")] for line in lines]
    start = next((n for n, head in enumerate(heads) if head[0] == "node type" and {"avg_ms", "name"} < set(head)), None)
    if start is None:
        return ()
    columns = heads[start]
    place = {name: columns.index(name) for name in ("node type", "avg_ms", "times called", "name") if name in columns}
    rows = []
    for cells in csv.reader(lines[start + 1 :]):
        if len(cells) < len(columns):
            break
        # an operator's name may hold commas and is not quoted; all columns but the first and the last are numbers
        extra = next((n for n in range(1, len(cells)) if re.fullmatch(NUMBER, cells[n].strip())), 1) - 1
        cells = [",".join(cells[: extra + 1]), *cells[extra + 1 :]]
        if len(cells) < len(columns):
            break
        calls = cells[place["times called"]].strip() if "times called" in place else "1"
        rows.append(
            Operator(
                kind=cells[0].strip(),
                name=",".join(cells[place["name"] :]).strip(),
                time_ms=_time(cells[place["avg_ms"]]),
                calls=int(calls) if re.fullmatch(r"\d{1,9}", calls) else 1,
            )
        )
    return tuple(rows)


def _time(text: str) -> float:
    value = number(text, "avg ms")
    if value < 0:
        raise DataError(f"avg ms: {text.strip()[:40]} is below zero")
    return value
