"""The gate: what a build was allowed to cost and had to be worth, against what was seen. Pure.

A line passes only on a figure of the right kind: latency and memory on a phone are UNMEASURED until the phone itself
was measured, whatever this machine says and whatever was predicted.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgedistill.errors import GateFailed, NotDecided, StageError
from edgedistill.gate import costs
from edgedistill.specs import (
    Artifact,
    Budget,
    Check,
    GateResult,
    Measurement,
    PairedCounts,
    Parity,
    Prediction,
    Provenance,
    Quality,
    QualityFloor,
    Target,
    Verdict,
)
from edgedistill.specs.base import Spec

UNITS = {
    "size_mb": "MB", "latency_p95_ms": "ms", "peak_memory_mb": "MB", "energy_mj": "mJ", "first_token_ms": "ms",
    "prefill_tokens_per_s": "tokens/s", "decode_tokens_per_s": "tokens/s",
}  # fmt: skip


class CostFacts(Spec):
    """What the budget's lines are judged on: one file, and what was timed of it.

    `host` was timed on this machine, which only counts for a target that is this machine, or on the target's own
    device. A prediction belongs to the budget line that its `quantity` names.
    """

    artifact: Artifact
    host: Measurement | None = None
    predictions: tuple[Prediction, ...] = ()


class GateFacts(CostFacts):
    """What the gate judges: one shipped file, and everything seen about it.

    `teacher` and `file` are qualities on the same held-out rows.
    """

    teacher: Quality
    file: Quality
    parity: Parity
    paired: PairedCounts | None = None


def pair(teacher_correct: Iterable[bool], file_correct: Iterable[bool]) -> PairedCounts:
    """Count rows by who was right; both sequences are in the same order of the same rows.

    Raises:
        ValueError: if their lengths differ.
    """
    seen = [(bool(teacher), bool(file)) for teacher, file in zip(teacher_correct, file_correct, strict=True)]
    return PairedCounts(
        both=seen.count((True, True)),
        only_file=seen.count((False, True)),
        only_teacher=seen.count((True, False)),
        neither=seen.count((False, False)),
    )


def gate(target: Target, budget: Budget, quality: QualityFloor, facts: GateFacts) -> GateResult:
    """Judge every line that is limited, in a fixed order.

    Raises:
        StageError: the facts contradict each other: other rows, or a measurement of another file.
    """
    _check_facts(facts)
    checks = budget_lines(target, budget, facts)
    return GateResult(target=target.name, checks=(*checks, *_quality_lines(quality, facts), *_parity_lines(facts)))


def budget_lines(target: Target, budget: Budget, facts: CostFacts) -> tuple[Check, ...]:
    """Judge what a file costs, in a fixed order.

    The latency of an inference is no line of a model that makes text where the budget has lines for text: one text is
    many inferences, and those lines say how long they may take.

    Raises:
        StageError: the measurement is of another file.
    """
    if facts.host and facts.host.artifact_sha256 != facts.artifact.sha256:
        raise StageError(f"the measurement is of another file than {facts.artifact.path}: sha256 differs")
    lines = {**budget.limits(), **budget.text_limits()}
    if budget.text_limits() and facts.host and "decode" in facts.host.tokens_per_s:
        lines.pop("latency_p95_ms", None)
    return tuple(_budget_line(target, name, limit, facts) for name, limit in lines.items())


def exit_error(result: GateResult, *, strict: bool) -> GateFailed | NotDecided | None:
    """The error whose exit code the result means: 3 when a line failed, 4 when strict and a line is not decided."""
    failed = [check for check in result.checks if check.verdict is Verdict.FAIL]
    if failed:
        return GateFailed(f"{len(failed)} of {len(result.checks)} lines failed on {result.target}:\n{_list(failed)}")
    open_lines = [check for check in result.checks if check.verdict is not Verdict.PASS]
    if strict and open_lines:
        head = f"{len(open_lines)} of {len(result.checks)} lines are not decided on {result.target}"
        return NotDecided(f"{head}, and so not passed:\n{_list(open_lines)}")
    return None


def _check_facts(facts: GateFacts) -> None:
    rows = {facts.teacher.rows, facts.file.rows} | ({facts.paired.rows} if facts.paired else set())
    if len(rows) != 1:
        raise StageError(f"teacher and file were judged on different rows: {sorted(rows)}")


def _budget_line(target: Target, name: str, limit: float, facts: CostFacts) -> Check:
    if name == "size_mb":
        return _exact(name, facts.artifact.size_mb, limit, "MB", Provenance.COMPUTED, "bytes of the shipped file")
    predicted = next((item for item in facts.predictions if item.quantity == name), None)
    why = costs.why_unmeasured(target, name, facts.host)
    if why or facts.host is None:
        tail = f"; {_told(predicted)}" if predicted else "; no prediction"
        return Check(
            name=name, verdict=Verdict.UNMEASURED, unit=UNITS[name], measured=None, limit=limit, note=f"{why}{tail}"
        )
    if name.endswith("_tokens_per_s"):
        return costs.speed(facts.host, name, limit)
    judge = {
        "latency_p95_ms": costs.latency, "peak_memory_mb": costs.memory, "energy_mj": costs.energy,
        "first_token_ms": costs.first_token,
    }[name]  # fmt: skip
    return judge(facts.host, limit)


def _told(prediction: Prediction) -> str:
    return (
        f"predicted {prediction.median:.3g} {prediction.unit}, {prediction.confidence:.0%} interval "
        f"{prediction.low:.3g} to {prediction.high:.3g}"
    )


def _quality_lines(quality: QualityFloor, facts: GateFacts) -> list[Check]:
    lines = []
    ran = "the file, run on this machine"
    if quality.retained_min is not None:
        if not facts.teacher.correct:
            raise StageError("the teacher answers no held-out row correctly: there is nothing to retain")
        interval = facts.paired.retained_interval() if facts.paired else None
        spread = f"; paired 95% CI {interval[0]:.1%} to {interval[1]:.1%}" if interval else "; no paired interval"
        # From the counts, not from the rounded accuracies: the line is decided on the exact ratio.
        retained = facts.file.correct / facts.teacher.correct
        note = f"{facts.file.correct} of the teacher's {facts.teacher.correct} correct{spread}"
        lines.append(_exact("retained_min", retained, quality.retained_min, "", Provenance.MEASURED, note))
    if quality.accuracy_min is not None:
        note = f"{ran}; 95% CI {facts.file.low:.1%} to {facts.file.high:.1%}, {facts.file.rows} rows"
        lines.append(_exact("accuracy_min", facts.file.accuracy, quality.accuracy_min, "", Provenance.MEASURED, note))
    note = f"{ran}, against the frozen student; {facts.parity.rows} rows"
    if facts.parity.first_divergence:
        note += f"; first differs at {facts.parity.first_divergence}"
    agreement, limit = facts.parity.argmax_agreement, quality.argmax_agreement_min
    lines.append(_exact("argmax_agreement_min", agreement, limit, "", Provenance.MEASURED, note))
    return lines


def _parity_lines(facts: GateFacts) -> list[Check]:
    note = f"read back from the file's bytes, {facts.parity.tensors} tensors"
    if not facts.parity.tensors:
        # Zero difference over zero tensors would be a pass that nobody earned.
        raise StageError("no tensor was read back from the file: its codes cannot be vouched for")
    return [
        _exact(name, float(value), 0.0, "", Provenance.COMPUTED, note)
        for name, value in (
            ("codes_max_difference", facts.parity.codes_max_difference),
            ("scales_max_difference", facts.parity.scales_max_difference),
        )
    ]


def _exact(name: str, measured: float, limit: float, unit: str, provenance: Provenance, note: str) -> Check:
    """A line that needs no interval: the figure is exact, or the spec says that the point value decides."""
    check = Check(
        name=name, verdict=Verdict.PASS, unit=unit, measured=measured, limit=limit, provenance=provenance, note=note
    )
    met = measured >= limit if check.relation == "≥" else measured <= limit
    return check if met else check.model_copy(update={"verdict": Verdict.FAIL})


def _list(checks: Iterable[Check]) -> str:
    return "\n".join(f"  {check.verdict:<12} {check.name}: {_figure(check)}" for check in checks)


def _figure(check: Check) -> str:
    seen = "not measured" if check.measured is None else f"{check.measured:.5g} {check.unit}".strip()
    return f"{seen}, wanted {check.relation} {check.limit:.5g} {check.unit}".strip() + f" ({check.note})"
