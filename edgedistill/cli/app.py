"""The commands, put together. Each module imports what is heavy only when its command runs, so that help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

import edgedistill
from edgedistill.cli import (
    bench,
    build,
    bundles,
    calibrate,
    catalogue,
    compare,
    convert,
    doctor,
    gate,
    parse,
    plan,
    starter,
)
from edgedistill.cli.options import ABOUT, BUILD, BUNDLE

EPILOG = (
    "Exit codes: 0 done · 1 a stage failed · 2 usage or spec · 3 a gate line failed · 4 not decided · "
    "5 device, disk or permission lost · 6 infeasible plan."
)

app = typer.Typer(
    name="edgedistill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edgedistill {edgedistill.__version__}")
        raise typer.Exit


@app.callback(epilog=EPILOG)
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere in the line.")
    ] = False,
) -> None:
    """From a big model, a phone and data to a small quantized student that provably meets the budget.

    Start with:  edgedistill build --target pixel8
    """


for _command, _name, _panel in (
    (build.build, "build", BUILD),
    (plan.plan, "plan", BUILD),
    (convert.convert, "convert", BUILD),
    (starter.init, "init", BUILD),
    (calibrate.calibrate, "calibrate", BUILD),
    (bundles.verify, "verify", BUNDLE),
    (bench.bench, "bench", BUNDLE),
    (gate.gate, "gate", BUNDLE),
    (compare.compare, "compare", BUNDLE),
    (bundles.report, "report", BUNDLE),
    (catalogue.targets, "targets", ABOUT),
    (catalogue.profiles, "profiles", ABOUT),
    (catalogue.schema, "schema", ABOUT),
    (parse.parse, "parse", ABOUT),
    (doctor.doctor, "doctor", ABOUT),
):
    app.command(_name, rich_help_panel=_panel)(_command)
