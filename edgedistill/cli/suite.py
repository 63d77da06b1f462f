"""`edgedistill bench --suite`: every script of the repository's bench folder, one after the other."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import edgedistill
from edgedistill.cli import output
from edgedistill.errors import SpecError, StageError, did_you_mean
from edgedistill.specs import Spec

BENCH = Path(edgedistill.__file__).parents[1] / "bench"


class Entry(Spec):
    """One script of bench/ with its arguments; `{work}` in them is a folder that all scripts share."""

    name: str
    command: tuple[str, ...]


class Suite(Spec):
    """bench/suite.toml."""

    bench: tuple[Entry, ...]


def run(only: Sequence[str], work: Path) -> None:
    """Run the scripts in their order, or those named; one that fails does not stop the others.

    Raises:
        SpecError: this is no checkout of the repository, or a name is unknown.
        StageError: naming the scripts that failed.
    """
    if not (BENCH / "suite.toml").is_file():
        raise SpecError(
            f"--suite runs the scripts in {BENCH}, which an installed package does not have. Clone the repository, "
            "install it with `pip install -e .`, and run this there."
        )
    entries = {entry.name: entry for entry in Suite.read_toml(BENCH / "suite.toml").bench}
    for name in only:
        if name not in entries:
            raise SpecError(f"--only {name}: no such benchmark{did_you_mean(name, entries)}")
    work.mkdir(parents=True, exist_ok=True)
    done = [_run(entry, work) for name, entry in entries.items() if not only or name in only]
    if output.wants_json():
        output.json_document({"benches": done})
    output.table("bench", ("script", "exit code", "seconds"), [tuple(item.values()) for item in done], right=(1, 2))
    failed = [str(item["name"]) for item in done if item["exit_code"]]
    if failed:
        raise StageError(f"{len(failed)} of {len(done)} benchmarks failed: {', '.join(failed)}. Each said why above.")
    output.say(f"results: {BENCH / 'results'}")


def _run(entry: Entry, work: Path) -> dict[str, str | int | float]:
    script, *arguments = (text.replace("{work}", str(work.resolve())) for text in entry.command)
    start = time.monotonic()
    # what a script says is for people; stdout is kept for this command's own document
    ended = subprocess.run(
        [sys.executable, str(BENCH / script), *arguments], cwd=BENCH.parent, stdout=sys.stderr, check=False
    )
    return {"name": entry.name, "exit_code": ended.returncode, "seconds": round(time.monotonic() - start, 1)}
