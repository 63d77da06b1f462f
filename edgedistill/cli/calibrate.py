"""`edgedistill calibrate`: the user's own measurements correct what is predicted for a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgedistill.cli import options, output

FEW = 3


def calibrate(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE|FILE…", help="Bundles, and what `bench --out` wrote of them; or anchors."),
    ],
    target: Annotated[str, typer.Option("--target", "-t", metavar="NAME|FILE", help="Device they were measured on.")],
    runtime_build: Annotated[
        str | None, typer.Option("--runtime-build", metavar="TEXT", help="Of anchors, e.g. 'litert 2.3.0'.")
    ] = None,
    store: options.StoreFolder = None,
    as_json: options.AsJson = False,
) -> None:
    """Rescale the predictions for a device by what was measured on it; `plan` and `build` use it from then on.

    Three to five measurements of students of different sizes are best.
    """
    output.choose(as_json=as_json)
    from edgedistill import catalog
    from edgedistill.cli.select import store_root
    from edgedistill.pipeline import calibrating

    device = catalog.load_target(target)
    found = calibrating.calibrate(device, sources, runtime_build=runtime_build, store=store_root(store))
    one = found.calibration
    if as_json:
        output.json_document({"path": str(found.path), "calibration": one.model_dump(mode="json")})
        return
    figures = [
        (
            item.what,
            item.anchor.quantity,
            f"{item.anchor.measured:.4g}",
            f"{item.predicted:.4g}",
            f"x{item.anchor.measured / item.predicted:.2f}",
        )
        for item in found.seen
    ]
    if figures:
        output.table("measured", ("what", "line", "measured", "predicted", "ratio"), figures, right=(2, 3, 4))
        output.say("latency is that of a typical inference, as it is predicted: a quiet launch's 10th percentile")
    rows = [(name, f"x{one.factors[name]:.3f}", one.anchors[name], f"{one.spread[name]:.2f}") for name in one.factors]
    output.table(
        f"{device.title}, {one.runtime_build}", ("class", "factor", "anchors", "spread of ln"), rows, right=(1, 2, 3)
    )
    fewest = min(one.anchors.values())
    if fewest < FEW:
        output.say(f"{fewest} anchor(s): intervals stay as wide as they were; with {FEW} they narrow", "yellow")
    used = f"plans for {device.name} use it from now on"
    if found.used != one.runtime_build:
        used = f"plans for {device.name} use that of {found.used}, the runtime that is installed here"
    output.say(f"wrote {found.path}; {used}")
