"""`edgedistill gate`: a bundle, or a decoder's file, judged, alone or against a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgedistill.cli import driving, options, output

if TYPE_CHECKING:
    from edgedistill.gate import Rule
    from edgedistill.pipeline.benching import TextSize
    from edgedistill.pipeline.race import Place
    from edgedistill.specs import GateReport

Tolerance = Annotated[
    float, typer.Option("--tolerance", help="Share by which it may be slower than the baseline, e.g. 0.05.")
]
PairsMax = Annotated[
    int, typer.Option("--pairs", min=5, max=200, help="Launches of each file at most; it starts with 5.")
]


Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="BUNDLE|FILE",
        help="Also fail when slower than this bundle or model's file, raced on one device, or than launches of "
        "`bench --out`.",
    ),
]
RaceOn = Annotated[
    str | None,
    typer.Option("--on", metavar="RUNNER", help="Race on host, adb:SERIAL or ssh:USER@HOST; default: the target's."),
]
Speedup = Annotated[
    float, typer.Option("--plausible-speedup", help="Faster than this many times the baseline fails: wrong file?")
]
AgainstItself = Annotated[
    bool, typer.Option("--aa", help="Also race the baseline against itself; a noisy device then decides nothing.")
]
Measured = Annotated[
    Path | None,
    typer.Option("--measured", metavar="FILE", help="Judge on these launches of `bench --out`, not on the build's."),
]
Unit = Annotated[
    str | None, typer.Option("--unit", metavar="NAME", help="Fail when the work is not done by this compute unit.")
]
OffUnit = Annotated[
    float, typer.Option("--off-unit-max", help="Share of time and of operators that may run elsewhere.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=256, help="CPU threads of the race; by default the target's.")
]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FOLDER", help="Write JSON, JUnit XML, Markdown, HTML, PNG and PDF there."),
]
Github = Annotated[bool, typer.Option("--github", help="Also write GitHub's step summary and annotations.")]


BundleOrFile = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE|FILE",
        help="Folder of `edgedistill build`, or a decoder's file with --target and --measured, or with --baseline.",
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option("--target", "-t", metavar="NAME|FILE", help="Of a FILE: whose budget; a bundle has its own.",
                 autocompletion=options.complete_target),
]  # fmt: skip


@dataclass(frozen=True)
class _Race:
    """What was asked about a race."""

    baseline: Path | None
    place: Place
    rule: Rule
    against_itself: bool
    size: TextSize | None


def gate(
    bundle: BundleOrFile,
    budget: options.Limits = None,
    baseline: Baseline = None,
    on: RaceOn = None,
    tolerance: Tolerance = 0.05,
    pairs: PairsMax = 20,
    speedup: Speedup = 2.0,
    aa: AgainstItself = False,
    measured: Measured = None,
    target: TargetName = None,
    prompt_tokens: options.PromptTokens = None,
    answer_tokens: options.AnswerTokens = None,
    unit: Unit = None,
    off_unit: OffUnit = 0.0,
    threads: Threads = None,
    core_mask: driving.CoreMask = None,
    python: driving.Python = None,
    tool: driving.Tool = None,
    cool_down: driving.CoolDown = None,
    unfit: driving.Unfit = None,
    reconnect: driving.Reconnect = None,
    out: OutFolder = None,
    github: Github = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Judge the bundle again, strictly: what is not measured has not passed. The bundle is not changed."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill.cli import select, ways_out
    from edgedistill.gate import Rule, exit_error
    from edgedistill.pipeline import benching
    from edgedistill.pipeline.race import Place

    how = driving.driven(core_mask=core_mask, python=python, tool=tool, cool_down=cool_down, unfit=unfit,
                         reconnect=reconnect)  # fmt: skip
    if baseline is None:
        _refuse_unraced({"--on": on, "--aa": aa, "--threads": threads, **driving.given(how)})
    output.check_out(out, folder=True)
    limits, size = select.parse_limits(budget or ()), None
    if prompt_tokens or answer_tokens:
        size = benching.TextSize(prompt_tokens or 128, answer_tokens or 32)
    rule = Rule(tolerance=tolerance, speedup_max=speedup, pairs_max=pairs)
    race = _Race(baseline, Place(on or "", threads, how), rule, aa, size)
    if bundle.is_file():
        _refuse(bundle, {"--unit": unit})
        found, warning = _of_file(bundle, target, measured, limits, race), ""
    else:
        _refuse(bundle, {"--target": target, "--prompt-tokens or --answer-tokens": size})
        found, warning = _of_bundle(bundle, measured, limits, race, (unit, off_unit))
    ways_out.tell_gate(found, out=out, github=github)
    if warning:
        output.say(warning, "yellow")
    if error := exit_error(found.result, strict=True):
        raise error


def _refuse(place: Path, given: Mapping[str, object]) -> None:
    """Refuse options that such an argument has no use for."""
    from edgedistill.errors import SpecError

    for name, value in given.items():
        if value:
            kind = "a file" if place.is_file() else "a bundle, with its own target and texts"
            raise SpecError(f"{name}: {place} is {kind}.")


def _refuse_unraced(given: Mapping[str, object]) -> None:
    """Refuse options that would do nothing."""
    from edgedistill.errors import SpecError

    for name, value in given.items():
        if value:
            raise SpecError(f"{name} says how to race, and there is no --baseline to race against.")


def _of_bundle(
    folder: Path, measured: Path | None, limits: Mapping[str, float], race: _Race, placement: tuple[str | None, float]
) -> tuple[GateReport, str]:
    """A bundle's lines, and what has to be said beside them."""
    from edgedistill.cli.progress import Watch
    from edgedistill.pipeline import gating, recheck

    opened = recheck.open_bundle(folder)
    seen = gating.measured_file(measured, opened) if measured else None
    comparison, place = None, race.place.of(opened.target)
    if race.baseline:
        with Watch() as watch:
            comparison = gating.compare_with(
                race.baseline, opened, race.rule, place=place, against_itself=race.against_itself, progress=watch
            )
    unit, off_unit_max = placement
    found = gating.judge(
        opened, limits, comparison=comparison, baseline=race.baseline, rule=race.rule,
        measured=seen, unit=unit, off_unit_max=off_unit_max,
    )  # fmt: skip
    if comparison and place.on.partition(":")[0] != opened.target.runner:
        return found, f"Raced on {comparison.device}: this says nothing about {opened.target.title}."
    return found, ""


def _of_file(
    path: Path, target: str | None, measured: Path | None, limits: Mapping[str, float], race: _Race
) -> GateReport:
    """A file's costs against a target's budget, its race against a baseline, or both.

    Raises:
        SpecError: neither can be done, or `measured` holds another number of measurements than one.
    """
    from edgedistill import catalog
    from edgedistill.cli.progress import Watch
    from edgedistill.errors import SpecError
    from edgedistill.pipeline import gating
    from edgedistill.pipeline.race import stored_measurements

    if (target is None) != (measured is None) or (target is None and race.baseline is None):
        raise SpecError(
            f"{path}: is a file. Give --target NAME and --measured FILE, which `bench {path} --out` wrote, or "
            "--baseline FILE, or both."
        )
    if limits and target is None:
        raise SpecError(f"--budget: {path} is judged against no budget. Give --target NAME and --measured FILE.")
    device, seen, comparison = catalog.load_target(target) if target else None, None, None
    if measured:
        held = list(stored_measurements(measured).values())
        if len(held) != 1:
            raise SpecError(f"{measured}: holds {len(held)} measurements; one of {path.name} is needed.")
        seen = held[0]
    if race.baseline:
        with Watch() as watch:
            comparison = gating.compare_files(
                race.baseline, path, race.rule, place=race.place.of(device), size=race.size,
                against_itself=race.against_itself, progress=watch,
            )  # fmt: skip
    return gating.judge_file(
        path, target=device, limits=limits, seen=seen, comparison=comparison, baseline=race.baseline, rule=race.rule
    )
