"""`edgedistill bench`: a bundle's file timed on this machine, on a phone over adb, on a board over ssh."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgedistill.cli import options, output

if TYPE_CHECKING:
    from edgedistill.pipeline.recheck import Bundle
    from edgedistill.specs import Energy, Measurement

HEADER = ("signature", "p50 ms", "p95 ms", "p95 low", "p95 high", "first ms", "load ms", "peak MB", "inferences")


On = Annotated[str, typer.Option("--on", metavar="RUNNER", help="host, adb:SERIAL, adb:HOST:PORT or ssh:USER@HOST.")]
Launches = Annotated[int, typer.Option("--launches", min=1, max=1000, help="Fresh processes per signature.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=256, help="CPU threads; by default the target's.")]
FormatName = Annotated[str, typer.Option("--format", "-f", metavar="NAME", help="Another format than the first.")]
CoreMask = Annotated[str, typer.Option("--core-mask", metavar="HEX", help="Cores to run on, as for taskset.")]
Python = Annotated[
    str, typer.Option("--python", metavar="PATH", help="Interpreter on the device, with the runtime installed.")
]
Tool = Annotated[
    str, typer.Option("--tool", metavar="FILE|device:PATH", help="A benchmark program, where there is no Python.")
]
Sustained = Annotated[
    float, typer.Option("--sustained", min=0, max=86400, metavar="SECONDS", help="Then run so long without a pause.")
]
CoolDown = Annotated[
    float, typer.Option("--cool-down", min=0, max=3600, metavar="SECONDS", help="Wait so long for a hot device.")
]
Tolerance = Annotated[
    float, typer.Option("--tolerance", min=0, max=1, help="Difference of a golden logit, as a share of the largest.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write the samples.")]


OptionalBundle = Annotated[Path | None, typer.Argument(metavar="BUNDLE", help="Folder that `edgedistill build` wrote.")]
Suite = Annotated[bool, typer.Option("--suite", help="Run the repository's own benchmarks, without a bundle: hours.")]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="With --suite: these alone.")]


def bench(
    bundle: OptionalBundle = None,
    on: On = "host",
    launches: Launches = 7,
    threads: Threads = None,
    format_name: FormatName = "",
    core_mask: CoreMask = "",
    python: Python = "python3",
    tool: Tool = "",
    sustained: Sustained = 0.0,
    cool_down: CoolDown = 120.0,
    tolerance: Tolerance = 0.02,
    out: Out = None,
    suite: Suite = False,
    only: Only = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Time the model where it is to run; the bundle is not changed."""
    output.choose(as_json=as_json, quiet=quiet)
    if suite:
        from edgedistill.cli import suite as scripts

        scripts.run(only or (), Path("bench_work"))
        return
    if bundle is None or only:
        raise typer.BadParameter("give a BUNDLE to time, or --suite [--only NAME] for the repository's benchmarks")
    from edgedistill.cli.progress import Watch
    from edgedistill.pipeline import benching, recheck
    from edgedistill.runners import How
    from edgedistill.store import storage_errors, write_json

    how = How(python=python, tool=tool, core_mask=core_mask, cool_down_s=cool_down)
    opened = recheck.open_bundle(bundle)
    with Watch() as watch:
        found = benching.bench(
            opened,
            on=on,
            launches=launches,
            threads=threads,
            format_name=format_name,
            how=how,
            sustained_s=sustained,
            progress=watch,
        )
    document = {name: _figures(seen) | {"measurement": seen.model_dump(mode="json")} for name, seen in found.items()}
    if out:
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, document)
    benching.check_outputs(found, tolerance)  # after the samples are safe
    if as_json:
        output.json_document(document)
        return
    _show(opened, found, launches, format_name)


def _show(opened: Bundle, found: dict[str, Measurement], launches: int, format_name: str) -> None:
    first = next(iter(found.values()))
    rows = [
        (
            name,
            *("–" if value is None else f"{value:,.3f}" for value in _figures(seen).values()),
            sum((item.summary.count or 0) if item.summary else 0 for item in seen.launches) or len(seen.samples_ms),
        )
        for name, seen in found.items()
    ]
    name = f"the {format_name} file" if format_name else opened.shipped.path
    title = f"{name} on {first.device}, {first.runtime}, {first.threads} thread(s), {launches} launches"
    output.table(title, HEADER, rows, right=range(1, 9))
    for name, seen in found.items():
        for line in _notes(seen):
            output.say(f"{name}: {line}")
    if first.provenance.value == "emulated":
        emulator = first.fingerprint.emulator if first.fingerprint else "an emulator"
        output.say(f"Emulated ({emulator}): right in what it computes, no figure of speed or memory.", "yellow")
    elif opened.target.runner != (first.fingerprint.runner if first.fingerprint else "host"):
        output.say(f"These are this machine's figures. They say nothing about {opened.target.title}.", "yellow")


def _notes(seen: Measurement) -> list[str]:
    """What does not fit into the table, a line each."""
    lines = []
    if seen.outputs:
        told = f"{seen.outputs.labels_agree} of {seen.outputs.samples} golden labels agree"
        lines.append(f"{told}, largest difference of a logit {seen.outputs.max_abs_difference:.2g}")
    if seen.tokens_per_s:
        lines.append(", ".join(f"{key} {value:.1f} tokens/s" for key, value in seen.tokens_per_s.items()))
    if seen.energy and seen.energy.energy_mj is not None:
        lines += energy_notes(seen.energy)
    if seen.sustained:
        ends = f"first window {seen.sustained.first_ms:.3f} ms, last {seen.sustained.last_ms:.3f} ms"
        lines.append(f"{seen.sustained.seconds:.0f} s without a pause: {ends}, {seen.sustained.ratio:.2f}x")
    lines += [
        f"{item.unit}: {item.operators} operators, {item.time_ms:.3f} ms, {item.time_share:.0%} of the time"
        for item in seen.placement
    ]
    return lines


def energy_notes(metered: Energy) -> list[str]:
    """Energy, idle power included, between its bounds; and what is above idle power."""
    told = f"{metered.energy_mj:.3g} mJ per inference"
    if metered.low_mj is not None and metered.high_mj is not None:
        told += f" ({metered.low_mj:.3g} to {metered.high_mj:.3g})"
    elif metered.resolution_mj:
        told += f" ± {metered.resolution_mj:.2g}"
    if metered.idle_mw is not None:
        above = f"{metered.above_idle_mj:.3g} mJ" if metered.above_idle_mj else "not to be told apart from 0"
        told += f", idle power included; above the {metered.idle_mw / 1e3:.3g} W of idling: {above}"
    every = f", read every {metered.interval_ms:.0f} ms" if metered.interval_ms else ""
    lines = [told, f"metered by {metered.source}{every}: {metered.covers or 'whole device'}"]
    return lines + ([metered.note] if metered.note else [])


def _figures(seen: Measurement) -> dict[str, float | None]:
    """What a person compares; the interval is that of one launch's 95th percentile, as the gate has it."""
    import math

    from edgedistill.gate import p95_bounds

    low, high = p95_bounds(seen) if seen.samples_ms else (None, None)
    return {
        "latency_p50_ms": _told(seen, 0.5),
        "latency_p95_ms": _told(seen, 0.95),
        "latency_p95_low_ms": low,
        # one launch bounds nothing, and JSON has no infinity
        "latency_p95_high_ms": high if high is None or math.isfinite(high) else max(seen.samples_ms),
        "first_inference_ms": seen.first_inference_ms,
        "load_ms": seen.load_ms,
        "peak_memory_mb": seen.peak_memory_mb,
    }


def _told(seen: Measurement, q: float) -> float | None:
    """A quantile; None where a benchmark program keeps no samples and does not tell it."""
    try:
        return seen.quantile_ms(q)
    except ValueError:
        return None
