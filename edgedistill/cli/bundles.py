"""`edgedistill verify` and `report`: a finished bundle, looked at again."""

from __future__ import annotations

from typing import Annotated

import typer

from edgedistill.cli import options, output


def verify(
    bundle: options.BundleFolder,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0.0, max=1.0, help="Difference of a golden logit, as a share of the largest."),
    ] = 0.0,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="Rows to run: JSONL, CSV or Parquet with 'text' and 'label'."),
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Run only so many rows. Default: all.")] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Prove that the models are what was trained: hashes, codes and scales, answers on real rows, golden samples."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill.cli.progress import Watch
    from edgedistill.cli.verdicts import proof_document, proof_tables
    from edgedistill.pipeline.recheck import open_bundle

    opened = open_bundle(bundle)
    from edgedistill.pipeline import replay

    with Watch() as watch:
        found = replay.verify(opened, tolerance=tolerance, data=data, most_rows=rows, progress=watch)
    if as_json:
        output.json_document({"bundle": str(bundle), "verified": True, **proof_document(found)})
    proof_tables(found)
    output.say(
        f"verified: {found.files} files, {found.tensors} tensors, {found.golden} golden samples; "
        f"largest difference of a golden logit {found.logits_max_difference:.2g}",
        "green",
    )


def report(bundle: options.BundleFolder, as_json: options.AsJson = False, quiet: options.Quiet = False) -> None:
    """Write report.html and report.md of the bundle again."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill.pipeline import recheck

    page, text = recheck.render(recheck.open_bundle(bundle))
    if as_json:
        output.json_document({"html": str(page), "markdown": str(text)})
    output.say(f"wrote {page} and {text.name}")
