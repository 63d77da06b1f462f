"""Splits without leaks: no held-out or validation text is ever trained on, in any spelling of case or spaces.

Which row goes where depends on the seed and the row itself (a hash), not on the order of the file, so adding rows moves
few others. Choices made here, each counted in `Splits.notes`:

- A text that occurs again in the same part is dropped. If its label differs, the first one in the file stands.
- A class whose rows are too few to share stays in training whole; it is then missing from held-out or validation.
- Rows are given away by largest remainder, so the parts add up to the fraction even when classes are small.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgedistill.data.augment import transfer_texts
from edgedistill.data.load import PlacedRow, load_placed
from edgedistill.data.rows import Row, shorten, text_key
from edgedistill.data.sources import held_out_source
from edgedistill.errors import DataError, StageError, did_you_mean
from edgedistill.specs.profile import DataSpec

_EXAMPLES = 3


@dataclass(frozen=True)
class Splits:
    """The rows of a build. `calibration` is a part of `train`; `transfer` has no labels; `labels` index the classes."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    calibration: tuple[Row, ...]
    held_out: tuple[Row, ...]
    transfer: tuple[Row, ...]
    labels: tuple[str, ...]
    notes: Mapping[str, int]


def make_splits(spec: DataSpec, seed: int, base: Path) -> Splits:
    """Read, split and augment the rows that `spec` names; relative paths start at `base`.

    Raises:
        DataError: for rows that cannot be read (see `load_rows`), fewer than two classes, a held-out label that is in
            no train row, train rows that are held-out rows too (unless `duplicates = "drop"`), too few rows to split.
        MissingDependency: for a Parquet file without pyarrow.
        StageError: if the result leaks, which would be a fault of this module.
    """
    notes: dict[str, int] = {}
    train = _distinct(load_placed(spec.train, base), "train", notes)
    held_out_from = held_out_source(spec)
    if held_out_from is None:
        _check_classes(train, spec.train)
        train, held_out = _share(train, spec.held_out_fraction, seed, "held_out", spec.train)
    else:
        held_out = _distinct(load_placed(held_out_from, base, part="held_out"), "held_out", notes)
        train = _apart(train, held_out, spec, notes)
        _check_classes(train, spec.train)
        _check_seen(held_out, train)
    train, validation = _share(train, spec.validation_fraction, seed, "validation", spec.train)
    rows = [placed.row for placed in train]
    checked = [placed.row for placed in (*validation, *held_out)]
    labels = tuple(sorted({_label(row) for row in rows}, key=_natural))
    by_rank = sorted(rows, key=lambda row: _rank(seed, "calibration", row.id))
    chosen = {row.id for row in by_rank[: spec.calibration_rows]}
    splits = Splits(
        train=tuple(rows),
        validation=tuple(placed.row for placed in validation),
        calibration=tuple(row for row in rows if row.id in chosen),
        held_out=tuple(placed.row for placed in held_out),
        transfer=tuple(transfer_texts(rows, spec.transfer_factor, seed, exclude=[row.text for row in checked])),
        labels=labels,
        notes=notes,
    )
    for name, part in (("held_out", splits.held_out), ("validation", splits.validation)):
        notes[f"classes_without_{name}_rows"] = len(set(labels) - {_label(row) for row in part})
    notes["calibration_rows_short"] = max(0, spec.calibration_rows - len(splits.calibration))
    check_no_leak(splits)
    return splits


def check_no_leak(splits: Splits) -> None:
    """Prove that nothing trained on (train, calibration, transfer) is also checked on (validation, held-out).

    Raises:
        StageError: naming the parts and up to three of the texts that they share.
    """
    keys = {
        name: {text_key(row.text) for row in getattr(splits, name)}
        for name in ("train", "calibration", "transfer", "validation", "held_out")
    }
    pairs = [(seen, unseen) for seen in ("train", "calibration", "transfer") for unseen in ("validation", "held_out")]
    for one, other in [*pairs, ("validation", "held_out")]:
        shared = sorted(keys[one] & keys[other])
        if shared:
            texts = ", ".join(shorten(text) for text in shared[:_EXAMPLES])
            raise StageError(
                f"the splits leak: {len(shared)} texts are in {one} and in {other} ({texts}). No quality figure from "
                "them would mean anything. If the build folder was edited, delete it and build again; otherwise "
                "please report this as a bug."
            )


def _distinct(rows: Iterable[PlacedRow], part: str, notes: dict[str, int]) -> list[PlacedRow]:
    """The first row of each text; what was dropped is counted in `notes`."""
    first: dict[str, PlacedRow] = {}
    read = conflicts = 0
    for placed in rows:
        read += 1
        kept = first.setdefault(text_key(placed.row.text), placed)
        conflicts += kept.row.label != placed.row.label
    notes[f"{part}_rows_read"] = read
    notes[f"{part}_duplicates_dropped"] = read - len(first) - conflicts
    notes[f"{part}_label_conflicts_dropped"] = conflicts
    return list(first.values())


def _apart(train: list[PlacedRow], held_out: list[PlacedRow], spec: DataSpec, notes: dict[str, int]) -> list[PlacedRow]:
    """The train rows whose text is not held out."""
    places = {text_key(placed.row.text): placed.place for placed in held_out}
    shared = [placed for placed in train if text_key(placed.row.text) in places]
    if shared and spec.duplicates == "error":
        examples = "\n".join(
            f"  {placed.place} = {places[text_key(placed.row.text)]}: {shorten(placed.row.text)}"
            for placed in shared[:_EXAMPLES]
        )
        raise DataError(
            f"{spec.train}: {len(shared):,} of its texts are in the held-out rows too:\n{examples}\n"
            'Remove them from one file, or set data.duplicates = "drop" to leave them out of training.'
        )
    notes["train_dropped_as_held_out"] = len(shared)
    dropped = {placed.row.id for placed in shared}
    return [placed for placed in train if placed.row.id not in dropped]


def _check_classes(train: list[PlacedRow], source: str) -> None:
    seen = sorted({_label(placed.row) for placed in train}, key=_natural)
    if len(seen) < 2:
        raise DataError(
            f"{source}: {len(train):,} training rows with {len(seen)} different labels "
            f"({', '.join(map(shorten, seen)) or 'none'}). A classifier needs at least 2."
        )


def _check_seen(held_out: list[PlacedRow], train: list[PlacedRow]) -> None:
    known = {_label(placed.row) for placed in train}
    unseen = [placed for placed in held_out if placed.row.label not in known]
    if unseen:
        place, row = unseen[0]
        names = sorted(known, key=_natural)
        near = difflib.get_close_matches(_label(row), names, n=10, cutoff=0.5)
        listed = did_you_mean(_label(row), names if len(names) <= 100 else near)
        raise DataError(
            f"{place}: label {shorten(row.label)} is in no training row ({len(unseen):,} held-out rows have such a "
            f"label){listed} Add training rows with it, or remove it from the held-out rows."
        )


def _share(
    rows: list[PlacedRow], fraction: float, seed: int, purpose: str, source: str
) -> tuple[list[PlacedRow], list[PlacedRow]]:
    """(what stays, what is taken): a stratified fraction is taken, and each class keeps at least one row."""
    classes: dict[str, list[str]] = defaultdict(list)
    for placed in rows:
        classes[_label(placed.row)].append(placed.row.id)
    quota = _quotas({label: len(ids) for label, ids in classes.items()}, fraction, f"{seed}\0{purpose}")
    taken = {
        row_id
        for label, ids in classes.items()
        for row_id in sorted(ids, key=lambda row_id: _rank(seed, purpose, row_id))[: quota[label]]
    }
    if not taken:
        raise DataError(
            f"{source}: no row can be taken for the {purpose} part, as each of the {len(classes):,} labels has one row "
            "and needs it for training. Allowed: at least one label with two different texts. Add rows."
        )
    return [p for p in rows if p.row.id not in taken], [p for p in rows if p.row.id in taken]


def _quotas(sizes: Mapping[str, int], fraction: float, salt: str) -> dict[str, int]:
    """Rows to take from each class: its share rounded down, then one each by largest remainder; never all of them."""
    quota = {label: min(int(size * fraction), size - 1) for label, size in sizes.items()}
    left = max(1, round(sum(sizes.values()) * fraction)) - sum(quota.values())
    order = sorted(sizes, key=lambda label: (-(sizes[label] * fraction % 1), _hash(f"{salt}\0{label}")))
    while left > 0:
        open_classes = [label for label in order if quota[label] < sizes[label] - 1]
        if not open_classes:
            break
        for label in open_classes[:left]:
            quota[label] += 1
        left -= len(open_classes)
    return quota


def _rank(seed: int, purpose: str, row_id: str) -> str:
    return _hash(f"{seed}\0{purpose}\0{row_id}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _label(row: Row) -> str:
    if row.label is None:
        raise StageError(f"row {row.id} ({shorten(row.text)}) has no label; please report this as a bug.")
    return row.label


def _natural(label: str) -> list[tuple[int, int, str]]:
    """Sorts 'a2' before 'a10'; labels that differ never compare equal."""
    # digits are compared by length and then as text: int() refuses very long ones
    parts = [
        (0, len(part.lstrip("0")), part.lstrip("0")) if part[0] in "0123456789" else (1, 0, part)
        for part in re.split(r"([0-9]+)", label)
        if part
    ]
    return [*parts, (-1, 0, label)]
