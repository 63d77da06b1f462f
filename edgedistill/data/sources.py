"""What the strings in a DataSpec mean: 'builtin:NAME' or a path, and which reader the file needs."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgedistill.data.rows import shorten
from edgedistill.errors import DataError, did_you_mean
from edgedistill.specs.profile import DataSpec

Part = Literal["train", "held_out"]
KINDS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
_PREFIX = "builtin:"
_BUILTIN = Path(__file__).parent / "builtin"


@dataclass(frozen=True)
class Source:
    """A regular file and the kind of its content, one of `KINDS`."""

    path: Path
    kind: str


def builtin_names() -> list[str]:
    """The data sets shipped with the package: what may follow 'builtin:'."""
    return sorted(folder.parent.name for folder in _BUILTIN.glob("*/train.csv.gz"))


def is_builtin(source: str) -> bool:
    """Whether `source` names a shipped data set and not a file of the user."""
    return source.startswith(_PREFIX)


def locate(source: str, base: Path, part: Part = "train") -> Source:
    """The file behind `source`; a relative path starts at `base`, `part` picks the half of a shipped data set.

    Raises:
        DataError: if the name is not shipped, or the path is no regular file with a known extension.
    """
    if is_builtin(source):
        name = source.removeprefix(_PREFIX)
        if name not in builtin_names():
            raise DataError(f"{shorten(source)}: no such data set{did_you_mean(name, builtin_names())}")
        return Source(_BUILTIN / name / f"{part}.csv.gz", ".csv.gz")
    path = base / source
    _check_regular(path)
    lowered = path.name.lower()
    kind = next((kind for kind in KINDS if lowered.endswith(kind)), None)
    if kind is None:
        raise DataError(
            f"{path}: unknown kind of file {shorten(path.suffix)}. Allowed extensions: {', '.join(KINDS)}. "
            "Rename the file, or convert it to one of these."
        )
    return Source(path, kind)


def fingerprint(spec: DataSpec, base: Path) -> str:
    """sha256 over the bytes of the spec's files, for a cache key; where the files lie does not matter.

    Raises:
        DataError: if a file is missing or cannot be read.
    """
    total = hashlib.sha256()
    for part, source in zip(("train", "held_out"), parts(spec, base), strict=True):
        if source is None:
            total.update(f"{part}\0none\n".encode())
            continue
        try:
            with source.path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{source.path}: cannot be read ({error.strerror}).") from None
        # the kind belongs to the content: the same bytes mean other rows to another reader
        total.update(f"{part}\0{source.kind}\0{digest}\n".encode())
    return total.hexdigest()


def parts(spec: DataSpec, base: Path) -> tuple[Source, Source | None]:
    """The train file and, unless the rows must be split here, the held-out file.

    Raises:
        DataError: as `locate`.
    """
    train = locate(spec.train, base, "train")
    held_out = held_out_source(spec)
    return train, None if held_out is None else locate(held_out, base, "held_out")


def held_out_source(spec: DataSpec) -> str | None:
    """The source of the held-out rows; a shipped data set brings its own."""
    if spec.held_out is None and is_builtin(spec.train):
        return spec.train
    return spec.held_out


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{_neighbours(path)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError:  # a NUL character in the path
        raise DataError(f"{shorten(str(path))}: not a path. Give a file name without NUL characters.") from None
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: is a folder. Give one file: {', '.join(KINDS)}.")
    # a pipe or device could block for ever or never end
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: not a regular file. Give a {', '.join(KINDS)} file.")


def _neighbours(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.name.lower().endswith(KINDS))
    except OSError:
        return ", nor is there such a folder. Relative paths start at the profile's folder."
    if not names:
        return f"; {path.parent} holds no data file. Allowed extensions: {', '.join(KINDS)}."
    return did_you_mean(path.name, names[:50])
