"""`edgedistill verify`, `bench`, `gate` and `report`: a finished bundle, looked at again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgedistill.cli import options, output

if TYPE_CHECKING:
    from edgedistill.specs import Measurement


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


def bench(
    bundle: options.BundleFolder,
    on: Annotated[str, typer.Option("--on", metavar="RUNNER", help="Where to run it; so far: host.")] = "host",
    launches: Annotated[int, typer.Option("--launches", min=1, max=1000, help="Fresh processes per signature.")] = 7,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=256, help="CPU threads; by default the target's.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write the samples.")] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Time the model with patience; the bundle is not changed."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill import catalog
    from edgedistill.errors import SpecError, did_you_mean
    from edgedistill.pipeline import recheck

    if on not in catalog.plugins("runners"):
        known = ("adb", "ssh", "ios")
        tail = " not available yet, devices cannot be driven" if on in known else " no such runner"
        raise SpecError(f"--on {on}:{tail}{did_you_mean(on, catalog.plugins('runners'))}")
    from edgedistill.cli.progress import Watch
    from edgedistill.store import storage_errors, write_json

    opened = recheck.open_bundle(bundle)
    with Watch() as watch:
        found = recheck.bench(opened, launches=launches, threads=threads, progress=watch)
    document = {name: _figures(seen) | {"measurement": seen.model_dump(mode="json")} for name, seen in found.items()}
    if out:
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, document)
    if as_json:
        output.json_document(document)
        return
    first = next(iter(found.values()))
    rows = [
        (name, *("–" if value is None else f"{value:,.3f}" for value in _figures(seen).values()), len(seen.samples_ms))
        for name, seen in found.items()
    ]
    title = f"{opened.shipped.path} on {first.device}, {first.runtime}, {first.threads} thread(s), {launches} launches"
    header = ("signature", "p50 ms", "p95 ms", "p95 low", "p95 high", "first ms", "load ms", "peak MB", "inferences")
    output.table(title, header, rows, right=range(1, 9))
    if opened.target.runner != "host":
        output.say(f"These are this machine's figures. They say nothing about {opened.target.title}.", "yellow")


def _figures(seen: Measurement) -> dict[str, float | None]:
    """What a person compares; the interval is that of one launch's 95th percentile, as the gate has it."""
    import math

    from edgedistill.gate import p95_bounds

    low, high = p95_bounds(seen)
    return {
        "latency_p50_ms": seen.latency_p50_ms,
        "latency_p95_ms": seen.latency_p95_ms,
        "latency_p95_low_ms": low,
        # one launch bounds nothing, and JSON has no infinity
        "latency_p95_high_ms": high if math.isfinite(high) else max(seen.samples_ms),
        "first_inference_ms": seen.first_inference_ms,
        "load_ms": seen.load_ms,
        "peak_memory_mb": seen.peak_memory_mb,
    }


def gate(
    bundle: options.BundleFolder,
    budget: options.Limits = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Judge the bundle again, strictly: what is not measured has not passed. Writes nothing."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill.cli.select import parse_limits
    from edgedistill.cli.verdicts import gate_table
    from edgedistill.gate import exit_error
    from edgedistill.pipeline import recheck

    limits = parse_limits(budget or ())
    result = recheck.gate_again(recheck.open_bundle(bundle), limits)
    error = exit_error(result, strict=True)
    if as_json:
        told = result.model_dump(mode="json") | {"verdict": result.verdict.value}
        output.json_document(told | {"bundle": str(bundle), "exit_code": error.exit_code if error else 0})
    gate_table(result)
    if error:
        raise error


def report(bundle: options.BundleFolder, as_json: options.AsJson = False, quiet: options.Quiet = False) -> None:
    """Write report.html and report.md of the bundle again."""
    output.choose(as_json=as_json, quiet=quiet)
    from edgedistill.pipeline import recheck

    page, text = recheck.render(recheck.open_bundle(bundle))
    if as_json:
        output.json_document({"html": str(page), "markdown": str(text)})
    output.say(f"wrote {page} and {text.name}")
