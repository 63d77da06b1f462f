"""A model file run on real rows beside the frozen student: how far its answers are, and where they begin to differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgedistill import catalog
from edgedistill.errors import EdgedistillError, VerificationError
from edgedistill.specs import Parity, Progress, QuantScheme

FP16_LARGEST = 65504.0
LOOKED_INTO = 4  # rows whose every value is looked at; each costs a run that keeps all of them
# The median difference of real rows from the student, as a share of the largest logit, where a file computes on the
# student's own grids: most rows agree to rounding, and a value between two codes takes the other one now and then.
# These are the medians that exporters ask for on random inputs. Float activations: the format's own PARITY.
STEPS = {"dynamic_int8": 0.02, "static_int8": 0.1}
Activations = Literal["as_trained", "float"]


@dataclass(frozen=True)
class Answers:
    """Logits [rows, classes] of a file and of the frozen student, and what the student computed them with."""

    sequences: Sequence[Sequence[int]]
    reference: Any
    file: Any
    activations: Activations


def activations_of(format_name: str, scheme: QuantScheme) -> Activations:
    """Whether the format's runtime computes the scheme's activations, or keeps them float."""
    computes: Activations = catalog.constants("exporters", format_name)["COMPUTES"][scheme.activations]
    return computes


def answers(
    format_name: str, frozen: Any, path: Path, sequences: Sequence[Sequence[int]], pad: int, progress: Progress
) -> Answers:
    """Run the file and the frozen student on every sequence of ids; `progress` advances twice for each.

    Raises:
        StageError: if the runtime refuses the file or fails; DataError: if a text does not fit it.
    """
    import numpy as np
    import torch

    from edgedistill import record
    from edgedistill.tasks import text_classification as task

    kind = activations_of(format_name, frozen.scheme)
    runner, found = catalog.load_plugin("exporters", format_name).load(path), []
    for item in sequences:
        found.append(task.run_file(runner, item))
        progress.advance(1)
    with torch.no_grad():
        given = frozen.to_module(kind)
        reference = record.answers(given, sequences, lambda batch: task.collate(batch, pad), progress).logits.numpy()
    return Answers(sequences, reference, np.stack(found), kind)


def check(format_name: str, frozen: Any, path: Path, seen: Answers, parity: Parity, agreement_min: float) -> Parity:
    """The parity, with the first layer that differs where fewer rows agree than the gate asks for.

    Raises:
        VerificationError: the file does not compute the student; naming the first layer that differs.
    """
    import numpy as np

    away = np.abs(seen.file - seen.reference).max(-1)
    share = _share(format_name, frozen, seen.activations)
    largest = parity.logits_reference_max_abs
    wrong = not float(np.median(away)) <= share * largest
    if not wrong and parity.argmax_agreement >= agreement_min:
        return parity
    worst = [seen.sequences[n] for n in np.argsort(away)[::-1][:LOOKED_INTO]]
    first = first_divergence(format_name, frozen, path, worst)
    if not wrong:
        return parity.model_copy(update={"first_divergence": first})
    raise VerificationError(
        f"{path}: does not compute the frozen student: on {len(away)} rows its logits are off by {np.median(away):.3g} "
        f"in the median and {away.max():.3g} at most, expected <= {share * largest:.2g} (largest logit {largest:.3g}); "
        f"{parity.argmax_agreement:.2%} of the answers agree. {_told(first)}"
    )


def check_lengths(format_name: str, frozen: Any, path: Path, buckets: Sequence[int]) -> None:
    """The file has an entry point of each bucket and no other; one that takes any length stands for all of them.

    Raises:
        VerificationError: naming what it has.
    """
    found = catalog.load_plugin("exporters", format_name).load(path).signatures
    if any(size < 0 for one in found.values() for port in one.inputs for size in port.shape):
        return
    wanted = [one.name for one in frozen.signatures(buckets)]
    if sorted(found) != sorted(wanted):
        raise VerificationError(f"{path}: has the entry points {', '.join(found)}; its bundle has {', '.join(wanted)}.")


def every_signature(format_name: str, frozen: Any, path: Path) -> None:
    """Run each graph of a file that has several on random inputs, as few or none of the real rows may go through one.

    Raises:
        VerificationError: one does not compute the student; naming the first layer that differs.
    """
    from edgedistill.exporters._proof import Limits, executes

    exporter = catalog.load_plugin("exporters", format_name)
    runner, kind = exporter.load(path), activations_of(format_name, frozen.scheme)
    if len(runner.signatures) == 1:
        return
    limits = Limits(_share(format_name, frozen, kind), math.inf)
    try:
        executes(frozen, runner, limits, kind, explain=lambda feeds: exporter.first_divergence(frozen, path, feeds))
    except VerificationError as error:
        raise VerificationError(f"{path}: {error}") from None


def _share(format_name: str, frozen: Any, computed: Activations) -> float:
    """How far the median answer may be from the student's, as a share of the largest."""
    kind = "float" if computed == "float" else frozen.scheme.activations
    share: float = STEPS.get(kind, catalog.constants("exporters", format_name)["PARITY"])
    return share


def first_divergence(format_name: str, frozen: Any, path: Path, sequences: Sequence[Sequence[int]]) -> str:
    """Where the file first differs from the student for the first of these texts for which it does; empty: nowhere.

    Asked for of a file that is known to be wrong: what keeps it from being told is a part of the answer.
    """
    exporter = catalog.load_plugin("exporters", format_name)
    try:
        runner = exporter.load(path)
        for ids in sequences:
            told: str | None = exporter.first_divergence(frozen, path, feeds_of(runner, ids))
            if told is not None:
                return told
    except (EdgedistillError, LookupError, ValueError, RuntimeError) as error:
        return f"a place that cannot be told ({str(error) or type(error).__name__})"
    return ""


def largest_value(format_name: str, path: Path, sequences: Sequence[Sequence[int]]) -> tuple[float, str]:
    """The largest size of any float that the file computes for the longest of these texts, and where."""
    exporter = catalog.load_plugin("exporters", format_name)
    runner = exporter.load(path)
    longest = sorted(sequences, key=len)[-LOOKED_INTO:]
    found: list[tuple[float, str]] = [exporter.largest_value(path, feeds_of(runner, ids)) for ids in longest]
    return max(found)


def feeds_of(runner: Any, ids: Sequence[int]) -> dict[str, Any]:
    """The inputs of the file's signature for one text."""
    from edgedistill.tasks import text_classification as task

    _, feeds = task.feeds_for(runner.signatures, ids)
    return feeds


def _told(first: str) -> str:
    return f"It first differs at {first}." if first else "Each layer alone agrees with the student's."
