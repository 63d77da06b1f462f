"""From the facts to the words and figures that the templates place; no markup here, no decisions there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgedistill.report.data import ReportData
from edgedistill.report.front import compared
from edgedistill.report.headline import headline, limit_of, on_host, title, value, where
from edgedistill.report.text import NOT_KNOWN, clean, column, figure, limited, percent, plain
from edgedistill.specs import Budget, Candidate, Check, LedgerRow, Plan, Prediction, Verdict

TONES = {Verdict.PASS: "good", Verdict.FAIL: "bad", Verdict.INCONCLUSIVE: "open", Verdict.UNMEASURED: "open"}
EXIT_CODES = (
    (0, "Done; nothing that could be measured failed."),
    (1, "A stage failed."),
    (2, "Usage or spec error, or a model's file that is damaged or foreign."),
    (3, "A line of the gate failed: budget, quality or parity."),
    (4, "Not decided: a line is unmeasured or inconclusive (from gate, and from build --strict)."),
    (5, "A device or the machine was lost; says nothing about the model."),
    (6, "The plan is infeasible: no candidate can meet the budget."),
)


def view(data: ReportData) -> dict[str, Any]:
    """Everything the templates need, as texts."""
    return {
        "title": f"{data.plan.profile.name} for {where(data)}",
        "target": where(data),
        "on_host": on_host(data),
        "headline": headline(data),
        "tiles": _tiles(data),
        "checks": [_check(check) for check in data.gate.checks],
        "ledger": _ledger(data),
        "unknown": NOT_KNOWN,
        "has_host_figures": any(row.latency_p50_ms is not None for row in data.ledger),
        "host": _host(data),
        "predictions": _predictions(data.plan),
        "parity": _parity(data),
        "chosen": _candidate(data, data.plan.chosen),
        "others": [_candidate(data, item) for item in data.plan.candidates if item.config != data.plan.chosen.config],
        "stages": [{"name": stage.name, "why": stage.why} for stage in data.plan.stages],
        "notes": list(data.plan.notes),
        "compared": compared(data),
        "searched": _searched(data),
        "splits": _splits(data),
        "split_notes": any(item.note for item in data.splits),
        # The rows per part are in the table already.
        "data_facts": _pairs({k: v for k, v in data.manifest.data.items() if k != "rows" or not data.splits}),
        "lineage": [_pairs(item) for item in data.manifest.lineage],
        "licences": _table(data.manifest.licences),
        "libraries": sorted(data.manifest.libraries.items()),
        "artifacts": [
            {
                "path": item.path,
                "format": item.format,
                "size": figure(item.size_mb, "MB"),
                "sha256": item.sha256,
                "runtime": item.audit.runtime_min if item.audit else "",
                "risks": item.audit.risks if item.audit else (),
            }
            for item in data.manifest.artifacts
        ],
        "version": data.manifest.edgedistill_version,
        "seed": str(data.plan.profile.seed),
        "exit_code": str(data.exit_code),
        "exit_meaning": dict(EXIT_CODES).get(data.exit_code, "Not a documented code."),
        "exit_codes": [{"code": str(code), "meaning": meaning} for code, meaning in EXIT_CODES],
    }


def _tiles(data: ReportData) -> list[dict[str, str]]:
    """The three figures that people ask for first."""
    shipped, teacher = _row(data, data.shipped), data.ledger[0]
    latency = next((item for item in data.plan.chosen.predictions if item.quantity == "latency_p95_ms"), None)
    seen = next((check for check in data.gate.checks if check.name == "latency_p95_ms"), None)
    kept = shipped.quality.correct / teacher.quality.correct if teacher.quality.correct else None
    limit = data.plan.budget.size_mb
    size_note = [f"limit {limited(limit, 'MB')}"] if limit else []
    size_note += filter(None, [_ratio(teacher.size_mb, shipped.size_mb)])
    tiles = [
        {"label": "Accuracy of the file", "figure": percent(shipped.quality.accuracy),
         "note": f"{percent(kept)} of the teacher's {percent(teacher.quality.accuracy)}"},
        {"label": "File size", "figure": figure(shipped.size_mb, "MB"),
         "note": " · ".join(size_note)},
    ]  # fmt: skip
    if seen and seen.measured is not None:
        note = f"95th percentile, measured; limit {limited(seen.limit, 'ms')}"
        tiles.append({"label": f"Latency on {where(data)}", "figure": figure(seen.measured, "ms"),
                      "note": note})  # fmt: skip
    elif latency:
        spread = f"{figure(latency.low)} to {figure(latency.high, latency.unit)}"
        tiles.append({"label": f"Latency on {where(data)}", "figure": f"≈ {figure(latency.median, 'ms')}",
                      "note": f"predicted, not measured · {spread}"})  # fmt: skip
    return tiles


def _ratio(teacher_mb: float | None, file_mb: float | None) -> str:
    if teacher_mb is None or not file_mb:
        return ""
    if file_mb < teacher_mb:
        return f"{figure(teacher_mb / file_mb)}× smaller than the teacher"
    return f"teacher {figure(teacher_mb, 'MB')}"


def _row(data: ReportData, name: str) -> LedgerRow:
    return next((row for row in data.ledger if row.name == name), data.ledger[-1])


def _check(check: Check) -> dict[str, str]:
    return {
        "title": title(check.name),
        "name": check.name,
        "verdict": check.verdict.value,
        "tone": TONES[check.verdict],
        "seen": "not measured" if check.measured is None else value(check.name, check.measured, check.unit),
        "limit": limit_of(check),
        "provenance": check.provenance.value if check.provenance else NOT_KNOWN,
        "note": check.note,
    }


def _ledger(data: ReportData) -> list[dict[str, Any]]:
    rows = data.ledger
    sizes, p50, p95, memory = (
        column(getattr(row, name) for row in rows)
        for name in ("size_mb", "latency_p50_ms", "latency_p95_ms", "peak_memory_mb")
    )
    return [
        {
            "name": row.name,
            "shipped": row.name == data.shipped,
            "suffix": " (shipped)" if row.name == data.shipped and "shipped" not in row.name else "",
            "accuracy": percent(row.quality.accuracy),
            "interval": f"{percent(row.quality.low)} to {percent(row.quality.high)}",
            "parameters": f"{row.parameters:,}",
            "size": sizes[index],
            "p50": p50[index],
            "p95": p95[index],
            "memory": memory[index],
            "note": " · ".join(filter(None, (row.runtime, row.note))),
        }
        for index, row in enumerate(rows)
    ]


def _host(data: ReportData) -> dict[str, str] | None:
    """The machine and the circumstances of the host figures, in one line each."""
    seen = data.measurements.get(data.shipped) or next(iter(data.measurements.values()), None)
    if seen is None:
        return None
    context = [
        (key, f"{item:.3g}" if isinstance(item, float | int) else item)
        for key, item in seen.context.items()
        if key not in ("cpu", "launches")  # already said
    ]
    return {
        "device": seen.device.removeprefix("host: "),
        "runtime": seen.runtime,
        "threads": str(seen.threads),
        "signature": seen.signature,
        "launches": str(len(seen.launch_medians_ms)),
        "context": " · ".join(f"{key.replace('_', ' ')} {item}" for key, item in context),
    }


def _predictions(plan: Plan) -> list[dict[str, str]]:
    """Every predicted line; those of further devices of a fleet carry the device's name."""
    found = [_prediction(item, title(item.quantity), plan.budget) for item in plan.chosen.predictions]
    for one in plan.fleet:
        budget = one.budget.tightened(plan.profile.budget)
        lines = plan.chosen.others.get(one.name, ())
        found += [_prediction(item, f"{clean(one.title)}: {title(item.quantity)}", budget) for item in lines]
    return found


def _prediction(item: Prediction, name: str, budget: Budget) -> dict[str, str]:
    limit = budget.limits().get(item.quantity)
    return {
        "title": name,
        "median": figure(item.median, item.unit),
        "interval": f"{figure(item.low)} to {figure(item.high, item.unit)}",
        "confidence": percent(item.confidence, 0),
        "limit": limited(limit, item.unit) if limit is not None else "not limited",
        "method": f"{item.level}: {item.method}" if item.level else item.method,
    }


def _parity(data: ReportData) -> list[dict[str, Any]]:
    return [
        {
            "format": name,
            "rows": [
                ("Tensors read back from the file", f"{item.tensors:,}"),
                ("Largest difference of a weight code", str(item.codes_max_difference)),
                ("Largest difference of a weight scale", figure(item.scales_max_difference)),
                ("Held-out rows run through the file", f"{item.rows:,}"),
                ("Largest difference of a logit", f"{item.logits_max_abs:.3g} of {item.logits_reference_max_abs:.3g}"),
                ("Mean KL divergence", f"{item.mean_kl:.3g} nats"),
                ("Same answer", percent(item.argmax_agreement, 2)),
                ("Accuracy, file", percent(item.accuracy_file, 2)),
                ("Accuracy, frozen student", percent(item.accuracy_reference, 2)),
            ],
        }
        for name, item in data.manifest.parity.items()
    ]


def _candidate(data: ReportData, item: Candidate) -> dict[str, str]:
    latency = next((line for line in item.predictions if line.quantity == "latency_p95_ms"), None)
    why = f"meets the budget; not preferred when optimizing for {data.plan.profile.optimize_for}"
    return {
        "config": ", ".join(f"{key.replace('_', ' ')} {plain(number)}" for key, number in item.config.items())
        + ("" if item.scheme is None else f", {item.scheme.label}"),
        "parameters": f"{item.parameters:,}",
        "macs": figure(item.macs / 1e6, "M"),
        "size": figure(item.size.total_mb, "MB"),
        "latency": figure(latency.median, latency.unit) if latency else NOT_KNOWN,
        "why": "; ".join(item.violations) or why,
    }


def _searched(data: ReportData) -> str:
    """How many students were looked at, in a sentence; empty when the profile named each."""
    counts = data.plan.search
    if counts is None or data.plan.profile.student.space is None:
        return ""
    return (
        f"{counts.combinations:,} combinations: {counts.invalid:,} are no student, {counts.excluded:,} were excluded "
        f"by a bound, {counts.evaluated:,} evaluated; {counts.feasible:,} can meet the budget."
    )


def _splits(data: ReportData) -> list[dict[str, str]]:
    return [
        {
            "name": item.name.replace("_", " "),
            "rows": f"{item.rows:,}",
            "dropped": f"{item.dropped_duplicates:,}",
            "note": item.note,
        }
        for item in data.splits
    ]


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, empty ones left out; what says which thing it is comes first."""
    first = ("role", "what", "name", "source")
    keys = [key for key in first if key in values] + [key for key in values if key not in first]
    return [(key.replace("_", " "), plain(values[key])) for key in keys if values[key] not in (None, "", {}, [], ())]


def _table(rows: Iterable[Mapping[str, str]]) -> dict[str, Any]:
    """Rows of alike mappings as one table; the columns in the order in which they first appear."""
    listed = list(rows)
    columns = list(dict.fromkeys(key for row in listed for key in row))
    columns.sort(key=lambda name: name not in ("what", "name"))  # stable: the rest keeps its order
    return {"columns": columns, "rows": [[row.get(key, NOT_KNOWN) for key in columns] for row in listed]}
