"""A gate's result as a table, for `build` and `gate`; what `verify` found, as tables and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgedistill.cli import output
from edgedistill.report.headline import limit_of, value
from edgedistill.specs import GateResult, Verdict

if TYPE_CHECKING:
    from edgedistill.pipeline.replay import Proof, Verified


def gate_table(result: GateResult) -> None:
    """Each line with what was seen, what was wanted and the verdict, in the report's words."""
    rows = [
        (
            check.name,
            check.verdict.value,
            value(check.name, check.measured, check.unit),
            limit_of(check),
            check.provenance.value if check.provenance else "–",
        )
        for check in result.checks
    ]
    header = ("gate", "verdict", "seen", "wanted", "figure is")
    output.table(f"{result.target}: {result.verdict.value}", header, rows, right=(2, 3))
    for check in result.checks:  # a line that passed needs no explanation; the report has it
        if check.verdict is not Verdict.PASS:
            output.say(f"{check.name}: {check.note}")


def proof_tables(found: Verified) -> None:
    """What was compared of each file, what it needs, and what may go wrong on a device."""
    for proof in found.proofs:
        output.table(f"{proof.artifact.path}, on {found.rows}", ("what", "found"), _lines(found, proof))
        for risk in proof.risks:
            output.say(f"risk: {risk}", "yellow")
    for note in found.notes:
        output.say(f"not compared: {note}", "yellow")


def proof_document(found: Verified) -> dict[str, Any]:
    """The same for programs. `accuracy` is null where no labelled rows were at hand."""
    return {
        "files": found.files,
        "tensors": found.tensors,
        "golden_samples": found.golden,
        "logits_max_difference": found.logits_max_difference,
        "rows": found.rows,
        "not_compared": list(found.notes),
        "formats": {proof.artifact.format: _document(found, proof) for proof in found.proofs},
    }


def _lines(found: Verified, proof: Proof) -> list[tuple[str, str]]:
    parity, scheme = proof.parity, proof.artifact.scheme
    operators = ", ".join(f"{name} {count}" for name, count in proof.audit.operators.items())
    lines = [
        ("codes, scales", f"{parity.tensors} tensors, difference 0" + (f"; {scheme.label}" if scheme else "")),
        ("rows", f"{parity.rows}, beside the frozen student"),
        ("logits", f"max abs {parity.logits_max_abs:.2g}, of {parity.logits_reference_max_abs:.3g} at most"),
        ("mean KL", f"{parity.mean_kl:.2g} nats"),
        ("same answer", f"{parity.argmax_agreement:.2%}"),
        ("needs", proof.audit.runtime_min),
        ("operators", operators),
        ("largest value", f"{proof.largest_value:.3g} in {proof.largest_at}; fp16 ends at 65504"),
    ]
    if proof.gpu is not None:
        lines.append(("GPU delegate", f"its analyzer finds {len(proof.gpu) or 'no'} obstacles"))
    if found.labelled:
        lines.insert(5, ("accuracy", f"{parity.accuracy_file:.2%}, frozen student {parity.accuracy_reference:.2%}"))
    return lines


def _document(found: Verified, proof: Proof) -> dict[str, Any]:
    parity = proof.parity.model_dump(mode="json", exclude={"accuracy_file", "accuracy_reference"})
    accuracy = {"file": proof.parity.accuracy_file, "frozen": proof.parity.accuracy_reference}
    return {
        "path": proof.artifact.path,
        "parity": parity,
        "accuracy": accuracy if found.labelled else None,
        "runtime_min": proof.audit.runtime_min,
        "operators": dict(proof.audit.operators),
        "fp16": {"largest_value": proof.largest_value, "at": proof.largest_at, "limit": 65504},
        "gpu_delegate": None if proof.gpu is None else list(proof.gpu),
        "risks": list(proof.risks),
    }
