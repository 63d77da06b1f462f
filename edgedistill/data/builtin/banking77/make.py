"""Makes train.csv.gz and held_out.csv.gz from jeffy-classify's pool.json: `python make.py POOL_JSON [FOLDER]`.

The package does not import this file; it is kept so that the shipped data can be made again.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from pathlib import Path

from edgedistill.data.rows import normalise, text_key


def make(pool: Path, folder: Path) -> None:
    """Write both files; the train rows whose text is held out are left out."""
    content = json.loads(pool.read_text(encoding="utf-8"))
    names: dict[str, str] = content["label_names"]
    held_out = _rows(content["test_texts"], content["test_labels"], names)
    unseen = {text_key(text) for text, _ in held_out}
    train = _rows(content["train_texts"], content["train_labels"], names)
    _write(folder / "held_out.csv.gz", held_out)
    _write(folder / "train.csv.gz", [row for row in train if text_key(row[0]) not in unseen])


def _rows(texts: list[str], labels: list[str], names: dict[str, str]) -> list[tuple[str, str]]:
    return [(normalise(text), names[label]) for text, label in zip(texts, labels, strict=True)]


def _write(path: Path, rows: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("text", "label"))
    writer.writerows(rows)
    # no time of making in the header: the same rows give the same bytes
    path.write_bytes(gzip.compress(text.getvalue().encode("utf-8"), compresslevel=9, mtime=0))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
