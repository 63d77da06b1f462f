"""Golden samples: held-out texts, the ids they become and what each format's file answered, for apps to replay."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from edgedistill.errors import SpecError
from edgedistill.specs import Spec


class GoldenAnswer(Spec):
    """What the file of one format answered, and through which signature."""

    signature: str
    logits: tuple[float, ...]
    label: str


class GoldenSample(Spec):
    """One replayable sample: a text, the ids it becomes, and the answer of each format's file."""

    id: str
    text: str
    input_ids: tuple[int, ...]
    answers: Mapping[str, GoldenAnswer]


def decode(value: Any, formats: Set[str], where: str) -> tuple[GoldenSample, ...]:
    """The samples of a bundle's golden.json.

    Raises:
        SpecError: it is not a list of samples, or one lacks the answer of a format.
    """
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise SpecError(f"{where}: not a list of samples.")
    samples = tuple(GoldenSample.decode(item, f"{where}: sample {number}") for number, item in enumerate(value))
    for sample in samples:
        absent = formats - sample.answers.keys()
        if absent:
            raise SpecError(f"{where}: sample {sample.id} has no answer of format {min(absent)}.")
    return samples


def made(
    format_name: str, rows: Any, sequences: Any, logits: Any, runner: Any, labels: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The samples of one format, as JSON: text, ids, the signature to call and what this file answered."""
    from edgedistill.tasks import text_classification as task

    return [
        {
            "id": row.id,
            "text": row.text,
            "input_ids": list(ids),
            "answers": {
                format_name: {
                    "signature": task.signature_for(runner.signatures, len(ids)).name,
                    "logits": [round(float(value), 6) for value in answer],
                    "label": labels[int(answer.argmax())],
                }
            },
        }
        for row, ids, answer in zip(rows, sequences, logits, strict=False)
    ]
