"""Splits: nothing leaks, classes are kept, choices are counted, bad data is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgedistill.data import Row, Splits, check_no_leak, make_splits, text_key
from edgedistill.errors import DataError, SpecError, StageError
from edgedistill.specs.profile import DataSpec

Pairs = list[tuple[str, str]]
SIZES = {"a": 40, "b": 25, "c10": 10, "c2": 7}
ROWS: Pairs = [
    (f"{label} question number {n} about x{n % 7}", label) for label, size in SIZES.items() for n in range(size)
]


def write(path: Path, rows: Pairs) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path.name


def split(tmp_path: Path, rows: Pairs, held_out: Pairs | None = None, seed: int = 0, **fields: Any) -> Splits:
    source = write(tmp_path / "train.jsonl", rows)
    other = None if held_out is None else write(tmp_path / "held_out.jsonl", held_out)
    return make_splits(DataSpec(train=source, held_out=other, **fields), seed, tmp_path)


def keys(rows: tuple[Row, ...]) -> set[str]:
    return {text_key(row.text) for row in rows}


def classes(rows: tuple[Row, ...]) -> Counter[str | None]:
    return Counter(row.label for row in rows)


# the split made here


@pytest.mark.parametrize("seed", range(5))
def test_our_own_split_is_stratified_and_whole(tmp_path: Path, seed: int) -> None:
    splits = split(tmp_path, ROWS, seed=seed, validation_fraction=0.1, transfer_factor=2, calibration_rows=20)
    parts = splits.train + splits.validation + splits.held_out
    assert sorted((row.text, row.label or "") for row in parts) == sorted(ROWS)
    assert len(splits.held_out) == round(0.2 * len(ROWS))
    assert len(splits.validation) == round(0.1 * (len(ROWS) - len(splits.held_out)))
    for label, size in SIZES.items():
        assert abs(classes(splits.held_out)[label] - 0.2 * size) < 1
    assert splits.labels == ("a", "b", "c2", "c10")
    assert len(splits.calibration) == 20
    assert set(splits.calibration) <= set(splits.train)
    unseen = keys(splits.validation) | keys(splits.held_out)
    assert not unseen & (keys(splits.train) | keys(splits.transfer))
    assert not keys(splits.validation) & keys(splits.held_out)
    assert {row.parent_id for row in splits.transfer} <= {row.id for row in splits.train}


def test_the_seed_decides_and_the_file_order_does_not(tmp_path: Path) -> None:
    one, again, other = (split(tmp_path, ROWS, seed=seed) for seed in (1, 1, 2))
    turned = split(tmp_path, ROWS[::-1], seed=1)
    assert one == again
    assert keys(one.held_out) != keys(other.held_out)
    assert keys(one.held_out) == keys(turned.held_out)
    assert keys(one.validation) == keys(turned.validation)


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    again = [(f"  {ROWS[0][0].upper()} ", "a"), ROWS[0], (ROWS[1][0], "b"), ("caf\u00e9 STRASSE", "a")]
    splits = split(tmp_path, [*ROWS, *again, ("cafe\u0301  stra\u00dfe", "a")])
    notes = splits.notes
    assert notes["train_rows_read"] == len(ROWS) + 5
    assert notes["train_duplicates_dropped"] == 3
    assert notes["train_label_conflicts_dropped"] == 1
    rows = splits.train + splits.validation + splits.held_out
    assert len(rows) == len(keys(rows)) == len(ROWS) + 1
    assert next(row.label for row in rows if row.text == ROWS[1][0]) == "a"  # the first label in the file stands


def test_tiny_classes_stay_in_training(tmp_path: Path) -> None:
    splits = split(tmp_path, [*ROWS, ("only one", "rare"), ("pair one", "pair"), ("pair two", "pair")])
    assert classes(splits.train)["rare"] == 1
    assert classes(splits.train)["pair"] >= 1
    assert splits.notes["classes_without_held_out_rows"] >= 1
    assert splits.notes["classes_without_validation_rows"] >= 1
    assert "rare" in splits.labels


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_extreme_fractions_leave_a_row_on_each_side(tmp_path: Path, fraction: float) -> None:
    rows = [*ROWS[:3], *ROWS[40:44]]
    splits = split(tmp_path, rows, held_out_fraction=fraction, validation_fraction=0.01) if fraction < 0.9 else None
    if splits is None:  # each class keeps one row, so that none is left for validation
        with pytest.raises(DataError, match="no row can be taken for the validation part"):
            split(tmp_path, rows, held_out_fraction=fraction)
        return
    assert splits.held_out
    assert splits.validation
    assert set(classes(splits.train)) == {"a", "b"}


def test_fewer_rows_than_the_calibration_asks_for(tmp_path: Path) -> None:
    splits = split(tmp_path, ROWS, calibration_rows=1000)
    assert splits.calibration == splits.train
    assert splits.notes["calibration_rows_short"] == 1000 - len(splits.train)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("one", "a"), ("two", "a")],
            r"2 training rows with 1 different labels \('a'\)\. A classifier needs at least 2",
        ),
        ([("one", "a"), ("ONE", "a")], r"1 training rows with 1 different labels"),
        ([("one", "a"), ("two", "b")], r"no row can be taken for the held_out part.*each of the 2 labels has one row"),
    ],
)
def test_too_little_data(tmp_path: Path, rows: Pairs, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(tmp_path, rows)


def test_natural_order_of_labels(tmp_path: Path) -> None:
    names = ["10", "9", "x", "x10", "x2", "x02", "9" * 5000, "-1", "X", "\u00b2", "\u0663"]
    rows = [(f"row {n} of {at}", name) for at, name in enumerate(names) for n in range(3)]
    labels = split(tmp_path, rows).labels
    assert labels == ("9", "10", "9" * 5000, "-1", "X", "x", "x02", "x2", "x10", "\u00b2", "\u0663")


# the user's own held-out file


def test_a_given_held_out_file_is_kept_whole(tmp_path: Path) -> None:
    held_out = [("new words here", "a"), ("more new words", "b"), ("MORE new words", "b")]
    splits = split(tmp_path, ROWS, held_out)
    assert [(row.text, row.label) for row in splits.held_out] == held_out[:2]
    assert splits.notes["held_out_duplicates_dropped"] == 1
    assert splits.notes["train_dropped_as_held_out"] == 0
    assert len(splits.train) + len(splits.validation) == len(ROWS)


def test_rows_in_both_files_are_refused_with_examples(tmp_path: Path) -> None:
    held_out = [("new words here", "a"), *((text.upper(), label) for text, label in ROWS[4:9])]
    with pytest.raises(DataError) as caught:
        split(tmp_path, ROWS, held_out)
    message = str(caught.value)
    assert "train.jsonl: 5 of its texts are in the held-out rows too" in message
    assert "train.jsonl:5 = " in message
    assert "held_out.jsonl:2: 'a question number 4" in message
    assert "train.jsonl:7 = " in message
    assert "train.jsonl:8 = " not in message  # three examples
    assert 'data.duplicates = "drop"' in message


def test_rows_in_both_files_can_be_dropped_from_training(tmp_path: Path) -> None:
    held_out = [("new words here", "a"), (ROWS[4][0].upper(), "b")]  # under another label it is a leak too
    splits = split(tmp_path, ROWS, held_out, duplicates="drop", transfer_factor=3)
    assert splits.notes["train_dropped_as_held_out"] == 1
    assert len(splits.train) + len(splits.validation) == len(ROWS) - 1
    assert len(splits.held_out) == 2
    assert not keys(splits.held_out) & (keys(splits.train) | keys(splits.transfer) | keys(splits.validation))


def test_the_same_file_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="82 of its texts"):
        split(tmp_path, ROWS, ROWS)
    with pytest.raises(DataError, match=r"0 training rows with 0 different labels \(none\)"):
        split(tmp_path, ROWS, ROWS, duplicates="drop")


def test_duplicates_takes_two_values(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="'error' or 'drop'"):
        DataSpec.decode({"train": "a.jsonl", "duplicates": "keep"}, "profile.toml")


def test_a_held_out_label_must_be_trained(tmp_path: Path) -> None:
    rows = [(text, f"intent_{label}") for text, label in ROWS]
    with pytest.raises(DataError) as caught:
        split(tmp_path, rows, [("new words", "intent_a"), ("newer words", "intend_a"), ("newest", "z")])
    message = str(caught.value)
    assert "held_out.jsonl:2: label 'intend_a' is in no training row (2 held-out rows have such a label)" in message
    assert "did you mean 'intent_a'?" in message
    assert "Add training rows with it" in message


def test_a_held_out_label_among_very_many(tmp_path: Path) -> None:
    rows = [(f"text {n} {m}", f"label_{n}") for n in range(300) for m in range(2)]
    with pytest.raises(DataError, match="did you mean 'label_299'") as caught:
        split(tmp_path, rows, [("new", "labl_299")])
    assert len(str(caught.value)) < 1000


def test_held_out_needs_labels_too(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "held_out.jsonl").write_text('{"text": "new"}\n')
    with pytest.raises(DataError, match=r"held_out\.jsonl: none of its 1 rows has a 'label'"):
        make_splits(DataSpec(train="train.jsonl", held_out="held_out.jsonl"), 0, tmp_path)


# the leak check itself


@pytest.mark.parametrize("seen", ["train", "calibration", "transfer"])
@pytest.mark.parametrize("unseen", ["held_out", "validation"])
def test_the_leak_check_finds_a_leak(tmp_path: Path, seen: str, unseen: str) -> None:
    splits = split(tmp_path, ROWS, transfer_factor=1)
    check_no_leak(splits)
    row = getattr(splits, unseen)[0]
    leaky = replace(row, id="0" * 16, text=row.text.upper(), label=None if seen == "transfer" else row.label)
    with pytest.raises(StageError, match=rf"the splits leak: 1 texts are in {seen} and in {unseen} \('"):
        check_no_leak(replace(splits, **{seen: (*getattr(splits, seen), leaky)}))


def test_the_leak_check_compares_validation_with_held_out(tmp_path: Path) -> None:
    splits = split(tmp_path, ROWS)
    with pytest.raises(StageError, match="in validation and in held_out"):
        check_no_leak(replace(splits, validation=splits.held_out[:1]))
