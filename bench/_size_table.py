"""graphs.toml, read and written, for `size.py --fit`."""

import textwrap
from pathlib import Path

from edgedistill.plan.size import graphs

TABLE = Path(graphs.__file__).with_name("graphs.toml")
NUMBERS, LINES = ("one", "many", "further", "whole", "beside"), ("each", "longest", "once")
# By format and mode: bytes by cell; and by part the tensors of its entry points.
Cells = dict[str, float]
Lines = dict[str, dict[str, list[str]]]
HEAD = """# Bytes of what is in a file beside the student's numbers: written by `python bench/size.py --fit FORMAT`.
# formats.FORMAT.MODE.parts.PART: in a file of one entry point, of many (two), for each further one, and so on:
# plan/size/graphs.py says what each number is, and plan/size/activations.py what the lines of tensors say.
# grids: what a tensor adds that is not int8 per channel; slice: a table of positions that is cut."""


def read_table() -> tuple[dict[str, dict[str, Cells]], dict[str, dict[str, Lines]]]:
    """The cells and the lines of graphs.toml."""
    graphs.formats.cache_clear()  # another fit may have written it in the meantime
    cells: dict[str, dict[str, Cells]] = {}
    lines: dict[str, dict[str, Lines]] = {}
    for name, known in graphs.formats().items() if TABLE.exists() else ():
        for mode, one in known.items():
            flat = {f"grids {label}": value for label, value in one.grids.items()}
            flat |= {"slice": one.slice} if one.slice else {}
            found: Lines = {}
            for part_name, part in one.parts.items():
                values = part.model_dump(mode="json")
                flat |= {f"parts {part_name} {key}": values[key] for key in NUMBERS if values[key] is not None}
                kept = {key: list(values[key]) for key in LINES if values[key]}
                found |= {part_name: kept} if kept else {}
            cells.setdefault(name, {})[mode] = flat
            lines.setdefault(name, {})[mode] = found
    return cells, lines


def write_table(cells: dict[str, dict[str, Cells]], lines: dict[str, dict[str, Lines]]) -> None:
    text = [HEAD]
    for name, known in sorted(cells.items()):
        for mode, flat in sorted(known.items()):
            text += ["", f"[formats.{name}.{mode}]"]
            text += [f"slice = {_number(flat[key])}" for key in ("slice",) if key in flat]
            grids = {key.removeprefix("grids "): value for key, value in flat.items() if key.startswith("grids ")}
            if grids:
                text += [f"[formats.{name}.{mode}.grids]"]
                text += [f'"{label}" = {_number(value)}' for label, value in sorted(grids.items())]
            text += _parts(f"formats.{name}.{mode}.parts", flat, lines.get(name, {}).get(mode, {}))
    TABLE.write_text("\n".join(text) + "\n", encoding="utf-8")
    graphs.formats.cache_clear()


def _parts(table: str, flat: Cells, lines: Lines) -> list[str]:
    parts: dict[str, dict[str, float]] = {}
    for cell, value in flat.items():
        if cell.startswith("parts "):
            part_name, _, key = cell.removeprefix("parts ").rpartition(" ")
            parts.setdefault(part_name, {})[key] = value
    short = {name: one for name, one in parts.items() if name not in lines}
    text = [f"[{table}]"] if short else []
    for name, one in sorted(short.items()):
        kept = [key for key in NUMBERS if key in one and (one[key] or key in ("one", "whole"))]
        inner = ", ".join(f"{key} = {_number(one[key])}" for key in kept)
        text.append(f'"{name}" = {{ {inner} }}')
    for name in sorted(set(parts) - set(short)):
        text.append(f'[{table}."{name}"]')
        one = parts[name]
        text += [
            f"{key} = {_number(one[key])}" for key in NUMBERS if key in one and (one[key] or key in ("one", "whole"))
        ]
        for key, of in lines[name].items():
            joined = ", ".join(f'"{line}"'.replace(" ", "~") for line in of)  # not to be broken inside of a line
            inside = textwrap.wrap(joined, 112, break_on_hyphens=False, break_long_words=False)
            text += [f"{key} = [", *("  " + line.replace("~", " ") for line in inside), "]"]
    return text


def _number(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"
