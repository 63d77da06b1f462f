"""`edgedistill bench`: a bundle's file, or a decoder's, timed on this machine, a phone over adb, a board over ssh."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgedistill.cli import driving, options, output

if TYPE_CHECKING:
    from edgedistill.pipeline.recheck import Bundle
    from edgedistill.specs import Energy, Measurement

HEADER = ("signature", "p50 ms", "p95 ms", "p95 low", "p95 high", "first ms", "load ms", "peak MB", "inferences")


On = Annotated[str, typer.Option("--on", metavar="RUNNER", help="host, adb:SERIAL, adb:HOST:PORT or ssh:USER@HOST.")]
Launches = Annotated[int, typer.Option("--launches", min=1, max=1000, help="Fresh processes per signature.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=256, help="CPU threads; by default the target's.")]
FormatName = Annotated[str, typer.Option("--format", "-f", metavar="NAME", help="Another format than the first.")]
Sustained = Annotated[
    float, typer.Option("--sustained", min=0, max=86400, metavar="SECONDS", help="Then run so long without a pause.")
]
Tolerance = Annotated[
    float, typer.Option("--tolerance", min=0, max=1, help="Difference of a golden logit, as a share of the largest.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write the samples.")]


OptionalBundle = Annotated[
    Path | None,
    typer.Argument(metavar="BUNDLE|FILE", help="Folder of `edgedistill build`, or a .gguf, .litertlm or .tflite that "
                   "makes text."),
]  # fmt: skip
Suite = Annotated[bool, typer.Option("--suite", help="Run the repository's own benchmarks, without a bundle: hours.")]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="With --suite: these alone.")]


def bench(
    bundle: OptionalBundle = None,
    on: On = "host",
    launches: Launches = 7,
    threads: Threads = None,
    format_name: FormatName = "",
    sustained: Sustained = 0.0,
    core_mask: driving.CoreMask = None,
    python: driving.Python = None,
    tool: driving.Tool = None,
    cool_down: driving.CoolDown = None,
    unfit: driving.Unfit = None,
    reconnect: driving.Reconnect = None,
    tolerance: Tolerance = 0.02,
    prompt_tokens: options.PromptTokens = None,
    answer_tokens: options.AnswerTokens = None,
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
    from edgedistill.store import write_json, writing

    how = driving.driven(core_mask=core_mask, python=python, tool=tool, cool_down=cool_down, unfit=unfit,
                         reconnect=reconnect)  # fmt: skip
    output.check_out(out, folder=False)
    opened = None if bundle.is_file() else recheck.open_bundle(bundle)
    _check_options(opened, format_name, prompt_tokens, answer_tokens)
    with Watch() as watch:
        run = benching.Run(on, launches, threads, how, sustained, progress=watch)
        size = benching.TextSize(prompt_tokens or 128, answer_tokens or 32)
        found = benching.bench(opened, run, format_name) if opened else benching.bench_text(bundle, size, run)
    document = {name: _entry(seen) for name, seen in found.items()}
    if out:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, document)
    benching.check_outputs(found, tolerance)  # after the samples are safe
    if as_json:
        output.json_document(document)
        return
    name = f"the {format_name} file" if format_name else opened.shipped.path if opened else bundle.name
    _show(opened, found, launches, name)


def _check_options(opened: Bundle | None, format_name: str, *tokens: int | None) -> None:
    """Refuse options that would do nothing."""
    from edgedistill.errors import SpecError

    if opened is None and format_name:
        raise SpecError("--format chooses a file of a BUNDLE; this is a FILE.")
    if opened is not None and any(count is not None for count in tokens):
        raise SpecError("--prompt-tokens and --answer-tokens are for a FILE that makes text; a BUNDLE has its samples.")


def _show(opened: Bundle | None, found: dict[str, Measurement], launches: int, name: str) -> None:
    first = next(iter(found.values()))
    rows = [
        (
            name,
            *("–" if value is None else f"{value:,.3f}" for value in _figures(seen).values()),
            sum((item.summary.count or 0) if item.summary else 0 for item in seen.launches) or len(seen.samples_ms),
        )
        for name, seen in found.items()
    ]
    title = f"{name} on {first.device}, {first.runtime}, {first.threads} thread(s), {launches} launches"
    output.table(title, HEADER, rows, right=range(1, 9))
    for name, seen in found.items():
        for line in _notes(seen):
            output.say(f"{name}: {line}")
    if first.provenance.value == "emulated":
        emulator = first.fingerprint.emulator if first.fingerprint else "an emulator"
        output.say(f"Emulated ({emulator}): right in what it computes, no figure of speed or memory.", "yellow")
    elif opened and opened.target.runner != (first.fingerprint.runner if first.fingerprint else "host"):
        output.say(f"These are this machine's figures. They say nothing about {opened.target.title}.", "yellow")


def _notes(seen: Measurement) -> list[str]:
    """What does not fit into the table, a line each."""
    lines = [f"not fit to be measured, and so not counted by the gate: {reason}" for reason in seen.unfit]
    if seen.outputs:
        told = f"{seen.outputs.labels_agree} of {seen.outputs.samples} golden labels agree"
        lines.append(f"{told}, largest difference of a logit {seen.outputs.max_abs_difference:.2g}")
    if seen.tokens_per_s:
        words = {"prefill": "reads", "decode": "writes"}
        speeds = sorted(f"{words.get(key, key)} {value:,.1f} tokens/s" for key, value in seen.tokens_per_s.items())
        lines.append(f"{', '.join(speeds)}; a sample is the time to the first token")
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


def _entry(seen: Measurement) -> dict[str, object]:
    """A measurement as the document has it: its figures first, then everything."""
    return {**_figures(seen), **_speeds(seen), "measurement": seen.model_dump(mode="json")}


def _speeds(seen: Measurement) -> dict[str, float]:
    """Tokens per second, under the names of the budget's lines; empty where no text is made."""
    return {f"{name}_tokens_per_s": value for name, value in seen.tokens_per_s.items()}


def _told(seen: Measurement, q: float) -> float | None:
    """A quantile; None where a benchmark program keeps no samples and does not tell it."""
    try:
        return seen.quantile_ms(q)
    except ValueError:
        return None
