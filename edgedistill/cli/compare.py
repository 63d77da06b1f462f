"""`edgedistill compare A B`: two builds side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgedistill.cli import driving, options, output
from edgedistill.cli.gate import PairsMax, Tolerance


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A bundle, or a file of `bench --out`: what there was.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="A bundle, or a file of `bench --out`: what is new.")],
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="RUNNER", help="Race the two models there now; without it stored timings count."),
    ] = None,
    tolerance: Tolerance = 0.05,
    pairs: PairsMax = 20,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=256, help="CPU threads of the race; by default the target's.")
    ] = None,
    core_mask: driving.CoreMask = None,
    python: driving.Python = None,
    tool: driving.Tool = None,
    cool_down: driving.CoolDown = None,
    unfit: driving.Unfit = None,
    reconnect: driving.Reconnect = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Write JSON, Markdown, HTML, PNG and PDF there."),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Size, accuracy, latency and memory of two builds, with intervals. It fails nothing: `gate --baseline` does."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill.cli import ways_out
    from edgedistill.cli.progress import Watch
    from edgedistill.errors import SpecError
    from edgedistill.gate import Rule
    from edgedistill.pipeline.compare import compare as compare_subjects
    from edgedistill.pipeline.compare import open_subject
    from edgedistill.pipeline.race import Place

    how = driving.driven(core_mask=core_mask, python=python, tool=tool, cool_down=cool_down, unfit=unfit,
                         reconnect=reconnect)  # fmt: skip
    useless = [name for name, value in {"--threads": threads, **driving.given(how)}.items() if value and not on]
    if useless:
        raise SpecError(f"{useless[0]} says how to race, and there is no --on to race at.")
    output.check_out(out, folder=True)
    rule = Rule(tolerance=tolerance, pairs_max=pairs)
    subjects = open_subject(a), open_subject(b)
    with Watch() as watch:
        found = compare_subjects(*subjects, rule, place=Place(on, threads, how) if on else None, progress=watch)
    ways_out.tell_comparison(found, out=out)
