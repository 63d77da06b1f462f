"""`edgedistill verify` and `report`: a finished bundle, looked at again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgedistill.cli import options, output

BundleOrFile = Annotated[
    Path, typer.Argument(metavar="BUNDLE|FILE", help="Folder of `edgedistill build`, or a model's file with --student.")
]


def verify(
    bundle: BundleOrFile,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0.0, max=1.0, help="Difference of a golden logit, as a share of the largest."),
    ] = 0.0,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="Rows to run: JSONL, CSV or Parquet with 'text' and 'label'."),
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Run only so many rows. Default: all.")] = None,
    student: Annotated[
        Path | None,
        typer.Option("--student", metavar="FOLDER", help="Of a FILE: the `frozen` folder of what it should be."),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Prove that the models are what was trained: hashes, codes and scales, answers on real rows, golden samples."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill.cli.progress import Watch
    from edgedistill.cli.verdicts import proof_document, proof_tables
    from edgedistill.errors import SpecError
    from edgedistill.pipeline.recheck import is_file, open_bundle

    if is_file(bundle):
        if tolerance or data is not None or rows is not None:
            raise SpecError(f"--tolerance, --data and --rows are for a BUNDLE, which has samples; {bundle} is a file.")
        _verify_file(bundle, student, as_json)
        return
    if student is not None:
        raise SpecError(f"--student goes with a FILE; {bundle} is a bundle, which has its student.")
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


def _verify_file(path: Path, student: Path | None, as_json: bool) -> None:
    from edgedistill.pipeline.single import verify_file

    found = verify_file(path, student)
    if as_json:
        output.json_document({
            "file": str(path), "verified": True, "format": found.format, "size_mb": found.size_mb,
            "tensors": found.tensors, "entry_points": list(found.entry_points), "runs": found.runs,
            **found.audit.model_dump(mode="json"),
        })  # fmt: skip
    for risk in found.audit.risks:
        output.say(f"risk: {risk}", "yellow")
    output.say(
        f"verified: {found.tensors} tensors, difference 0; every layer of {found.runs} runs on random inputs through "
        f"{', '.join(found.entry_points)}; needs {found.audit.runtime_min}",
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
