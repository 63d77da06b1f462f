"""`edgedistill gate`: a bundle judged, alone or against a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgedistill.cli import options, output

if TYPE_CHECKING:
    from edgedistill.pipeline.race import Place
    from edgedistill.pipeline.recheck import Bundle
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
        help="Also fail when slower than this bundle, raced on one device, or than launches of `bench --out`.",
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
    typer.Argument(metavar="BUNDLE|FILE", help="Folder of `edgedistill build`, or a model's file with --measured."),
]
TargetName = Annotated[
    str | None,
    typer.Option("--target", "-t", metavar="NAME|FILE", help="Of a FILE: whose budget; a bundle has its own.",
                 autocompletion=options.complete_target),
]  # fmt: skip


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
    unit: Unit = None,
    off_unit: OffUnit = 0.0,
    threads: Threads = None,
    out: OutFolder = None,
    github: Github = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Judge the bundle again, strictly: what is not measured has not passed. The bundle is not changed."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill.cli import select, ways_out
    from edgedistill.gate import Rule, exit_error
    from edgedistill.pipeline import gating, race, recheck

    limits = select.parse_limits(budget or ())
    if bundle.is_file():
        _refuse(bundle, {"--baseline": baseline, "--on": on, "--aa": aa, "--unit": unit})
        found = _of_file(bundle, target, measured, limits)
        ways_out.tell_gate(found, out=out, github=github)
        if error := exit_error(found.result, strict=True):
            raise error
        return
    _refuse(bundle, {"--target": target})
    rule = Rule(tolerance=tolerance, speedup_max=speedup, pairs_max=pairs)
    opened = recheck.open_bundle(bundle)
    _check_options(on, baseline=baseline, aa=aa)
    seen = gating.measured_file(measured, opened) if measured else None
    comparison, place = None, race.Place(on or opened.target.runner, threads)
    if baseline:
        from edgedistill.cli.progress import Watch

        with Watch() as watch:
            comparison = gating.compare_with(baseline, opened, rule, place=place, against_itself=aa, progress=watch)
    found = gating.judge(
        opened, limits, comparison=comparison, baseline=baseline, rule=rule,
        measured=seen, unit=unit, off_unit_max=off_unit,
    )  # fmt: skip
    ways_out.tell_gate(found, out=out, github=github)
    _warn_of_another_device(opened, found, place)
    error = exit_error(found.result, strict=True)
    if error:
        raise error


def _refuse(place: Path, given: Mapping[str, object]) -> None:
    """Refuse options that such an argument has no use for."""
    from edgedistill.errors import SpecError

    for name, value in given.items():
        if value:
            kind = "a file" if place.is_file() else "a bundle, with its own target"
            raise SpecError(f"{name}: {place} is {kind}.")


def _of_file(path: Path, target: str | None, measured: Path | None, limits: Mapping[str, float]) -> GateReport:
    """A file's costs against a target's budget.

    Raises:
        SpecError: no target, or not one measurement.
    """
    from edgedistill import catalog
    from edgedistill.errors import SpecError
    from edgedistill.pipeline import gating, race

    if target is None or measured is None:
        raise SpecError(f"{path}: is a file. Give --target NAME and --measured FILE, which `bench {path} --out` wrote.")
    seen = list(race.stored_measurements(measured).values())
    if len(seen) != 1:
        raise SpecError(f"{measured}: holds {len(seen)} measurements; one of {path.name} is needed.")
    return gating.judge_file(path, catalog.load_target(target), limits, seen[0])


def _check_options(on: str | None, *, baseline: Path | None, aa: bool) -> None:
    """Refuse options that would do nothing."""
    from edgedistill.errors import SpecError

    if baseline is None and (on or aa):
        raise SpecError(f"{'--on' if on else '--aa'} says how to race, and there is no --baseline to race against.")


def _warn_of_another_device(opened: Bundle, found: GateReport, place: Place) -> None:
    if found.comparison and place.on.partition(":")[0] != opened.target.runner:
        output.say(f"Raced on {found.comparison.device}: this says nothing about {opened.target.title}.", "yellow")
