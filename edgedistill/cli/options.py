"""The options that commands share, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BUILD, BUNDLE, ABOUT = "Make a model", "Check a bundle", "Look around"


def complete_target(incomplete: str) -> list[str]:
    """Names of devices for the shell; after a comma, of a further one."""
    from edgedistill import catalog

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in catalog.target_names() if name.startswith(last)]


def complete_profile(incomplete: str) -> list[str]:
    """Names of builds for the shell."""
    from edgedistill import catalog

    return [name for name in catalog.profile_names() if name.startswith(incomplete)]


def complete_format(incomplete: str) -> list[str]:
    """Names of formats for the shell."""
    from edgedistill import catalog

    return [name for name in catalog.plugins("exporters") if name.startswith(incomplete)]


TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        metavar="NAME|FILE,…",
        help="Device to build for, or several: one student whose budget holds on all.",
        autocompletion=complete_target,
    ),
]
ProfileName = Annotated[
    str,
    typer.Option("--profile", "-p", metavar="NAME|FILE", help="What to build.", autocompletion=complete_profile),
]
DataFile = Annotated[
    str | None,
    typer.Option("--data", metavar="FILE", help="Your rows: JSONL, CSV or Parquet with 'text' and 'label'."),
]
HeldOutFile = Annotated[
    str | None,
    typer.Option("--held-out", metavar="FILE", help="Rows to judge on; without it a part of --data."),
]
TeacherName = Annotated[
    str | None,
    typer.Option("--teacher", metavar="FOLDER|ORG/NAME|package:NAME", help="Teacher to use, not the profile's."),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="FOLDER",
        envvar="EDGEDISTILL_STORE",
        help="Where finished stages are kept; by default the user's cache.",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Another seed than the profile's.")]
Baselines = Annotated[
    bool, typer.Option("--baselines", help="Also train the same student without the teacher, for comparison.")
]
Limits = Annotated[
    list[str] | None,
    typer.Option("--budget", metavar="LINE=NUMBER,…", help="Limits to use, e.g. size_mb=8,latency_p95_ms=15."),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="NAME,…",
        help="Formats to write, the first is the one that is gated on the device. Default: the target's.",
        autocompletion=complete_format,
    ),
]
Search = Annotated[
    bool, typer.Option("--search", help="Choose among all students of the family, not the profile's candidates.")
]
OptimizeFor = Annotated[
    str | None,
    typer.Option("--optimize-for", metavar="quality|size|latency|battery", help="What is best, within the budget."),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        "--confidence", metavar="0.5…0.99", help="How surely each line of the budget has to hold. Default: 0.9."
    ),
]
Assistants = Annotated[
    str | None,
    typer.Option("--assistants", metavar="auto|0|1|2|3", help="Teacher assistants between teacher and student."),
]
PromptTokens = Annotated[
    int | None, typer.Option("--prompt-tokens", min=2, max=10**6, help="Of a FILE: tokens to read; 128 if not given.")
]
AnswerTokens = Annotated[
    int | None, typer.Option("--answer-tokens", min=1, max=10**6, help="Of a FILE: tokens to make; 32 if not given.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `edgedistill build` wrote.")]
