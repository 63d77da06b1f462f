"""`edgedistill parse`: the output of another tool, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgedistill.cli import options, output

File = Annotated[Path, typer.Argument(metavar="FILE", help="What a benchmark, a phone's service or a meter wrote.")]
Kind = Annotated[str, typer.Option("--kind", metavar="NAME", help="Which tool wrote it, where it cannot be told.")]


def parse(file: File, kind: Kind = "", as_json: options.AsJson = False, quiet: options.Quiet = False) -> None:
    """Read what another tool printed: benchmark_model, llama-bench, dumpsys and others."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill import parsers

    name, value = parsers.read(file, kind)
    told = _plain(value)
    if as_json:
        output.json_document({"kind": name, "value": told})
        return
    import json

    output.say(f"{file}: {name}", "green")
    output.say(json.dumps(told, indent=1, ensure_ascii=False))


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value.model_dump(mode="json")
