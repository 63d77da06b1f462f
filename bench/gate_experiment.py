"""How often is the regression gate wrong? Real gates on a noisy machine: the same file, and a slower one.

python bench/gate_experiment.py [--work DIR] [--gates 100] [--load 2] [--fresh]

The slower file is a student with 11 layers instead of 10, built by the product; how much slower it is, is measured by
all the pairs of the experiment together. `--load` processes count in the background all the time. Both kinds of gate
alternate, so that they share the machine's hours. Every gate is appended to results/gate_experiment.jsonl at once: run
the same command again to go on, until `--gates` of each kind are there.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from _machine import RESULTS, write

from edgedistill import catalog, pipeline
from edgedistill.errors import InfrastructureError
from edgedistill.gate import Rule, regression_lines
from edgedistill.pipeline.race import Place, race
from edgedistill.pipeline.recheck import Bundle, open_bundle
from edgedistill.specs import Profile
from edgedistill.store import Store

LOG = RESULTS / "gate_experiment.jsonl"
KINDS = {"same file": 10, "slower file": 11}  # layers of the candidate; the baseline has 10
RULE = Rule()
LOAD = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))\n"


def student(layers: int) -> Profile:
    """The tiny profile with a student large enough to be timed, and hardly trained: only its time matters here."""
    tiny = catalog.load_profile("tiny").model_dump()
    tiny["name"] = f"layers_{layers}"
    tiny["student"]["candidates"] = [{"layers": layers, "width": 64, "heads": 4, "ffn": 256}]
    tiny["stages"] = [stage | {"epochs": 1, "steps_min": 5} for stage in tiny["stages"]]
    tiny["budget"] = {"size_mb": 4.0}
    tiny["quality"] = {"argmax_agreement_min": 0.5}
    return Profile.decode(tiny, "gate_experiment")


def built(work: Path, layers: int) -> Bundle:
    folder = work / f"layers_{layers}"
    if not folder.exists():
        target = catalog.load_target("host")
        pipeline.build(target, student(layers), store=Store(work / "store"), out=folder, base=Path())
    return open_bundle(folder)


@contextlib.contextmanager
def background(processes: int) -> Iterator[None]:
    """Processes that count and do nothing else; they end with this one, however it ends."""
    started = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def one_gate(kind: str, baseline: Bundle, candidate: Bundle, load: int) -> dict[str, object]:
    start = time.monotonic()
    seen = race(baseline, candidate, RULE, place=Place())
    line = regression_lines(seen, RULE)[0]
    return {
        "kind": kind,
        "verdict": line.verdict.value,
        **{name: round(getattr(seen.latency, name), 5) for name in ("ratio", "low", "high")},
        "pairs": seen.latency.pairs,
        "baseline_ms": [round(value, 6) for value in seen.baseline.launch_medians_ms],
        "candidate_ms": [round(value, 6) for value in seen.candidate.launch_medians_ms],
        "seconds": round(time.monotonic() - start, 1),
        "load_average": os.getloadavg()[0],
        "counting_processes": load,
    }


def gates() -> list[dict[str, object]]:
    return [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []


def run(work: Path, wanted: int, load: int) -> None:
    bundles = {layers: built(work, layers) for layers in sorted(set(KINDS.values()))}
    with background(load):
        while True:
            done = [gate["kind"] for gate in gates()]
            kind = min(KINDS, key=done.count)
            if done.count(kind) >= wanted:
                return
            try:
                seen = one_gate(kind, bundles[10], bundles[KINDS[kind]], load)
            except InfrastructureError as error:  # says nothing about a file, so it is no gate; it is counted apart
                seen = {"kind": "lost", "why": str(error)}
            with LOG.open("a", encoding="utf-8") as log:
                log.write(json.dumps(seen) + "\n")


def table(seen: list[dict[str, object]]) -> tuple[dict[str, object], str]:
    figures: dict[str, object] = {}
    rows = []
    for kind in KINDS:
        mine = [gate for gate in seen if gate["kind"] == kind]
        counts = {name: sum(g["verdict"] == name for g in mine) for name in ("PASS", "FAIL", "INCONCLUSIVE")}
        logs = [
            math.log(new / old)
            for gate in mine
            for old, new in zip(gate["baseline_ms"], gate["candidate_ms"], strict=True)
        ]
        truth, spread = math.exp(statistics.median(logs)), statistics.stdev(logs)
        pairs = [gate["pairs"] for gate in mine]
        seconds = statistics.median(gate["seconds"] for gate in mine)
        loads = [gate["load_average"] for gate in mine]
        figures[kind] = {
            "gates": len(mine), **counts, "ratio_of_all_pairs": truth, "pairs_of_all_gates": len(logs),
            "spread_of_a_pair": spread, "pairs_median": statistics.median(pairs), "pairs_max": max(pairs),
            "seconds_median": seconds, "load_average": [min(loads), statistics.median(loads), max(loads)],
        }  # fmt: skip
        rows.append(
            f"| {kind} | {truth:.4f} | {100 * spread:.1f}% | {len(mine)} | {counts['PASS']} | {counts['FAIL']} | "
            f"{counts['INCONCLUSIVE']} | {statistics.mean(pairs):.1f} | {seconds:.1f} | "
            f"{min(loads):.1f} to {max(loads):.1f} |"
        )
    counting = sorted({int(gate["counting_processes"]) for gate in seen if gate["kind"] in KINDS})
    busy = " or ".join(map(str, counting))
    figures["lost"] = sum(gate["kind"] == "lost" for gate in seen)
    head = [
        "# How often the regression gate is wrong",
        "",
        f"Tolerance {RULE.tolerance:.0%}, {RULE.pairs_step} to {RULE.pairs_max} pairs of launches, one thread. "
        "The slower file has 11 layers where the baseline has 10. A launch that the machine lost ends a gate without "
        f"a verdict: {figures['lost']}. Pairs are the mean, seconds of a gate the median; "
        f"load is the one-minute load average, {busy} of it processes that only count.",
        "",
        "| candidate | true ratio | sd of a pair | gates | PASS | FAIL | INCONCLUSIVE | pairs | s | load |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    return figures, "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("gate_experiment_work"))
    parser.add_argument("--gates", type=int, default=100)
    parser.add_argument("--load", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="forget the gates that are there")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        LOG.unlink(missing_ok=True)
    run(options.work, options.gates, options.load)
    write("gate_experiment", *table(gates()))
