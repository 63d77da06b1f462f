"""Rows: read them from files nobody has checked, split them without leaks, make the transfer set, store them.

Nothing here imports numpy or torch. Every text is NFC with single spaces (`normalise`); two texts are the same when
they are also equal without regard to case (`text_key`).
"""

from __future__ import annotations

from edgedistill.data.augment import Recipe, transfer_texts
from edgedistill.data.folder import read_splits, write_splits
from edgedistill.data.load import load_rows
from edgedistill.data.rows import Row, normalise, text_key
from edgedistill.data.sources import builtin_names, fingerprint
from edgedistill.data.split import Splits, check_no_leak, make_splits

__all__ = [
    "Recipe",
    "Row",
    "Splits",
    "builtin_names",
    "check_no_leak",
    "fingerprint",
    "load_rows",
    "make_splits",
    "normalise",
    "read_splits",
    "text_key",
    "transfer_texts",
    "write_splits",
]
