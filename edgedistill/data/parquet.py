"""Reads the `text` and `label` columns of an untrusted Parquet file, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgedistill.data.lines import MAX_LINE_BYTES, unpacked_limit
from edgedistill.errors import DataError, MissingDependency

_COLUMNS = ("text", "label")
_BATCH_ROWS = 256  # small: a dictionary-packed file repeats long texts almost for free


def parquet_columns(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, object]]]]:
    """The file's column names, and its rows as (number from 1, the values of `text` and `label` that it has).

    Raises:
        DataError: if the file is not Parquet, a column has a type that is neither text nor (for `label`) integer, or
            it unpacks to too much; while iterating, also for a damaged page.
        MissingDependency: if pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingDependency(f"{path}: reading Parquet needs pyarrow. Run: pip install pyarrow") from None
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        names = list(schema.names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None
    wanted = [name for name in _COLUMNS if name in names]
    for name in wanted:
        _check_type(path, name, schema, pa.types)
    # the sizes in the footer are not looked at: pyarrow aborts the process on some damaged ones, and they may lie
    return names, _values(path, file, wanted, pa.ArrowException)


def _values(path: Path, file: Any, wanted: list[str], failure: Any) -> Iterator[tuple[int, dict[str, object]]]:
    number, total, limit = 0, 0, unpacked_limit(path.stat().st_size)
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted, use_threads=False):
            for at in range(batch.num_rows):
                number += 1
                values = {name: batch.column(name)[at].as_py() for name in wanted}
                size = sum(len(value) for value in values.values() if isinstance(value, str))
                total += size
                if size > MAX_LINE_BYTES or total > limit:
                    what = f"more than {MAX_LINE_BYTES if size > MAX_LINE_BYTES else limit:,} characters of text"
                    raise DataError(f"{path}: row {number}: {what}, which is too much. Shorten the texts.")
                yield number, values
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: row {number}: not UTF-8 (byte {error.start + 1}). Write it as UTF-8.") from None
    except (failure, OSError) as error:
        raise _damaged(path, error, f" row {number + 1}:") from None
    finally:
        file.close()


def _check_type(path: Path, name: str, schema: Any, types: Any) -> None:
    if schema.names.count(name) > 1:
        raise DataError(f"{path}: column {name!r} occurs {schema.names.count(name)} times. Keep one of them.")
    kind = schema.field(name).type
    value = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(value) or types.is_large_string(value) or (name == "label" and types.is_integer(value)):
        return
    allowed = "string" if name == "text" else "string or integer"
    raise DataError(f"{path}: column {name!r} has type {str(kind)[:60]}. Allowed: {allowed}. Convert the column.")


def _damaged(path: Path, error: Exception, place: str = "") -> DataError:
    reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return DataError(f"{path}:{place} not a readable Parquet file ({reason}). Write the file again.")
