"""`edgedistill init`: a target and a profile of one's own to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgedistill.cli import output

STARTERS = Path(__file__).parent / "starters"


def init(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to write them.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace files of these names.")] = False,
) -> None:
    """Write my_target.toml and my_profile.toml, commented, ready to be edited."""
    output.choose()
    from edgedistill.errors import SpecError
    from edgedistill.store import write_whole, writing

    starters = sorted(STARTERS.glob("*.toml"))
    taken = [folder / path.name for path in starters if (folder / path.name).exists()]
    if taken and not force:
        raise SpecError(f"{', '.join(map(str, taken))}: exists already. --force replaces it.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in starters:
            write_whole(folder / path.name, path.read_bytes())
            output.say(f"wrote {folder / path.name}")
    place = "./" if folder == Path() else f"{folder}/"
    output.say(f"next:  edgedistill plan --target {place}my_target.toml --profile {place}my_profile.toml")
