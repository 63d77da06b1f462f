"""What commands write: tables and lines on stdout, or one JSON document; nothing else goes there.

Rich is imported when something is drawn. Texts from files are shown as they are: never as markup, and without the
control characters that could move a terminal's cursor or change its title.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType
    from rich.text import Text

BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it
WIDE = 160  # columns when nobody says how wide the output is: in a file a line need not be broken
STYLES = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow", "UNMEASURED": "yellow"}


@dataclass
class _State:
    json_wanted: bool = False
    json_written: bool = False
    quiet: bool = False


_state = _State()


def choose(*, as_json: bool = False, quiet: bool = False) -> None:
    """Say once, at the start of a command, how it speaks."""
    _state.json_wanted, _state.json_written, _state.quiet = as_json, False, quiet


def wants_json() -> bool:
    """Whether this command was asked for a JSON document."""
    return _state.json_wanted


def wrote_json() -> bool:
    """Whether the document is written already."""
    return _state.json_written


def is_quiet() -> bool:
    """Whether only errors are wanted."""
    return _state.quiet


def json_document(value: Any) -> None:
    """Write the command's one JSON document."""
    _state.json_written = True
    _write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def clean(text: object) -> str:
    """The text without control characters, line ends and tabs apart."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf") else "\ufffd" for c in str(text))


def check_out(out: Path | None, *, folder: bool) -> None:
    """Find out before long work whether `--out` can be written.

    Raises:
        SpecError: it is a folder where a file is meant, or the other way round.
        InfrastructureError: it cannot be written.
    """
    from edgedistill.errors import SpecError
    from edgedistill.store import check_place

    if out is None:
        return
    if folder and out.exists() and not out.is_dir():
        raise SpecError(f"--out {out}: is a file. Give a folder, new or not.")
    if not folder and out.is_dir():
        raise SpecError(f"--out {out}: is a folder. Give a file, such as {out / 'bench.json'}.")
    check_place(out / "gate.json" if folder and out.is_dir() else out)


def say(text: str = "", style: str = "") -> None:
    """A line of human output; nothing when JSON or silence is wanted."""
    if not (_state.json_wanted or _state.quiet):
        _draw(styled(text, style), soft_wrap=True)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """A table of human output; the columns in `right` are figures. A cell that is a verdict is coloured."""
    if _state.json_wanted or _state.quiet:
        return
    from rich import box
    from rich.table import Table

    drawn = Table(title=styled(title, "bold") if title else None, title_justify="left", box=box.SIMPLE_HEAD)
    for place, name in enumerate(header):
        drawn.add_column(name, justify="right" if place in right else "left", overflow="fold", no_wrap=place == 0)
    for row in rows:
        drawn.add_row(*(styled(str(cell), STYLES.get(str(cell), "")) for cell in row))
    _draw(drawn)


def tree(title: str, groups: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """A tree of human output: groups of names, each with what is said of it."""
    if _state.json_wanted or _state.quiet:
        return
    from rich.tree import Tree

    drawn = Tree(styled(title, "bold"), guide_style="dim")
    for group, items in groups.items():
        branch = drawn.add(styled(group))
        for name, text in items:
            line = styled(f"{name}  ", "bold")
            branch.add(line.append(styled(text)))
    _draw(drawn)


def styled(text: str, style: str = "") -> Text:
    """The text as Rich shows it, with no markup in it."""
    from rich.text import Text

    return Text(clean(text), style=style)


def _draw(what: RenderableType, *, soft_wrap: bool = False) -> None:
    from rich.console import Console

    # Rich takes the width from COLUMNS or the terminal, and leaves colours out for NO_COLOR and for files.
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    with console.capture() as captured:
        console.print(what, soft_wrap=soft_wrap)
    _write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `| head`
        raise SystemExit(BROKEN_PIPE) from None
