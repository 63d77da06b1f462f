"""`edgedistill convert`: a student trained with torchao's quantization-aware training, as verified files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgedistill.cli import options, output


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE.toml", help="See `schema checkpoint`.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The files; must not exist yet.")],
    formats: Annotated[str, typer.Option("--format", "-f", metavar="NAME,…", help="Formats to write.")] = "tflite",
    data: options.DataFile = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint of torchao's QAT as files that hold the very codes it was trained to; nothing is trained."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill import catalog
    from edgedistill.cli.progress import Watch
    from edgedistill.errors import SpecError, did_you_mean
    from edgedistill.pipeline.conversion import convert as run
    from edgedistill.specs import Checkpoint

    about = Checkpoint.read_toml(checkpoint)
    names = [name.strip() for name in formats.split(",")]
    odd = next((name for name in names if name not in catalog.plugins("exporters")), None)
    if odd is not None or len(set(names)) < len(names):
        told = "given twice" if odd is None else f"{odd!r}: no such format"
        raise SpecError(f"--format {told}{did_you_mean(odd or names[0], catalog.plugins('exporters'))}")
    with Watch() as watch:
        found = run(about, checkpoint.resolve().parent, names, out, data, watch)
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
