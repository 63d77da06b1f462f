"""`edgedistill convert`: a student that is trained already as verified files: a checkpoint of torchao's, a bundle's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgedistill.cli import options, output


def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE.toml|BUNDLE", help="See `schema checkpoint`; or a bundle.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The files; must not exist yet.")],
    formats: Annotated[str, typer.Option("--format", "-f", metavar="NAME,…", help="Formats to write.")] = "tflite",
    precision: Annotated[
        Literal["float16", "float32"],
        typer.Option(help="What a Core ML package of a bundle computes in; in float32, static int8 is exact."),
    ] = "float16",
    data: options.DataFile = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint of torchao's QAT, or a bundle's student, as files of its very codes; nothing is trained."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill import catalog
    from edgedistill.cli.progress import Watch
    from edgedistill.errors import SpecError, did_you_mean
    from edgedistill.pipeline.conversion import convert as run
    from edgedistill.pipeline.repacking import repack
    from edgedistill.specs import Checkpoint

    names = [name.strip() for name in formats.split(",")]
    odd = next((name for name in names if name not in catalog.plugins("exporters")), None)
    if odd is not None or len(set(names)) < len(names):
        told = "given twice" if odd is None else f"{odd!r}: no such format"
        raise SpecError(f"--format {told}{did_you_mean(odd or names[0], catalog.plugins('exporters'))}")
    if precision != "float16" and not (source.is_dir() and "coreml" in names):
        raise SpecError(f"--precision {precision} goes with a bundle and --format coreml; got {source}, {formats}.")
    if source.is_dir():
        if data is not None:
            raise SpecError("--data goes with a checkpoint; `edgedistill verify` runs a bundle on rows.")
        with Watch() as watch:
            artifacts = repack(source, names, out, precision, watch)
        if as_json:
            output.json_document(
                {"folder": str(out), "artifacts": [item.model_dump(mode="json") for item in artifacts]}
            )
        output.say(f"wrote {out}: {', '.join(item.path for item in artifacts)}", "green")
        return
    about = Checkpoint.read_toml(source)
    with Watch() as watch:
        found = run(about, source.resolve().parent, names, out, data, watch)
    if as_json:
        output.json_document({
            "folder": str(found.folder),
            "artifacts": [item.model_dump(mode="json") for item in found.artifacts],
            "tensors": [{"name": item.name, "exact": item.exact, "told": str(item)} for item in found.moved],
            "parity": {name: item.model_dump(mode="json") for name, item in found.parity.items()},
        })  # fmt: skip
    for item in found.moved:
        output.say(str(item), "" if item.exact else "yellow")
    output.say(f"wrote {found.folder}: {', '.join(item.path for item in found.artifacts)}", "green")
