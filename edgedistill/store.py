"""The store: a stage is finished, or it never happened.

A stage's key is the sha256 of a readable `key.json`: name, revision, spec, the keys of its inputs and the versions of
the libraries that shape its output; never a path, a host name or a time. A stage works in `KEY.partial`; when it is
done, `done.json` (every file with size and sha256) is written last and the folder is renamed once. What a killed stage
left in its `checkpoint/` folder is kept for the next try, everything else in the partial folder is removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from edgedistill.errors import InfrastructureError

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Finished:
    """A finished stage: where its files are, its key, and whether the work was already there."""

    name: str
    key: str
    folder: Path
    cached: bool

    def file(self, name: str) -> Path:
        """The path of one of the stage's files."""
        return self.folder / name


class Store:
    """Folders of finished stages under one root, addressed by what made them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def describe(
        name: str, revision: int, spec: Mapping[str, Any], inputs: Sequence[Finished], libraries: Sequence[str]
    ) -> dict[str, Any]:
        """The readable description that a stage's key is the hash of."""
        return {
            "stage": name,
            "revision": revision,
            "spec": spec,
            "inputs": [{"stage": item.name, "key": item.key} for item in inputs],
            "libraries": {library: version_of(library) for library in sorted(libraries)},
        }

    def stage(
        self,
        name: str,
        run: Callable[[Path], None],
        *,
        revision: int,
        spec: Mapping[str, Any],
        inputs: Sequence[Finished] = (),
        libraries: Sequence[str] = (),
    ) -> Finished:
        """Return the finished stage, running `run(folder)` if it is not there or its files were damaged.

        Raises:
            InfrastructureError: the disk is full, may not be written, or another process holds this stage.
        """
        description = self.describe(name, revision, spec, inputs, libraries)
        key = key_of(description)
        folder = self.root / name / key
        if is_intact(folder):
            return Finished(name, key, folder, cached=True)
        with storage_errors(self.root):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with self._lock(folder):
                if is_intact(folder):  # another process finished it while this one waited
                    return Finished(name, key, folder, cached=True)
                partial = self._fresh(folder)
                run(partial)
                shutil.rmtree(partial / CHECKPOINT, ignore_errors=True)
                _seal(partial, description)
                partial.rename(folder)
                _sync(folder.parent)
        return Finished(name, key, folder, cached=False)

    @contextlib.contextmanager
    def _lock(self, folder: Path) -> Iterator[None]:
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(timeout=3600)
        except Timeout:
            raise InfrastructureError(f"another process has held {folder.name} of {self.root} for an hour.") from None
        try:
            yield
        finally:
            lock.release()

    def _fresh(self, folder: Path) -> Path:
        """The partial folder with nothing in it but the checkpoints of an earlier, killed try."""
        shutil.rmtree(folder, ignore_errors=True)  # present but damaged
        partial = folder.with_name(f"{folder.name}.partial")
        partial.mkdir(exist_ok=True)
        for item in partial.iterdir():
            if item.name == CHECKPOINT:
                continue
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        return partial


def key_of(description: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the description's sha256."""
    text = json.dumps(description, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_intact(folder: Path) -> bool:
    """True when the stage is finished and every file still has the size and hash it had then."""
    try:
        done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        return all(
            (folder / name).stat().st_size == facts["bytes"] and sha256_of(folder / name) == facts["sha256"]
            for name, facts in done["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # absent, cut short or edited: the stage is simply not there


def difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Readable lines saying how two key descriptions differ."""
    lines = []
    for key in sorted({*old, *new}):
        here = f"{path}.{key}" if path else key
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += difference(before, after, here)
        elif before != after:
            lines.append(f"{here}: {json.dumps(before)} -> {json.dumps(after)}")
    return lines


def newest(root: Path, name: str) -> dict[str, Any] | None:
    """The key description of the stage `name` that was finished last, or None."""
    found = sorted((root / name).glob("*/done.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        with contextlib.suppress(OSError, ValueError):
            loaded: dict[str, Any] = json.loads((path.parent / "key.json").read_text(encoding="utf-8"))
            return loaded
    return None


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(path: Path) -> str:
    """As `sha256_of`; of a folder, the sha256 of the lines `NAME  SHA256` of every file in it, sorted by name."""
    if path.is_file():
        return sha256_of(path)
    lines = (f"{item.relative_to(path).as_posix()}  {sha256_of(item)}\n" for item in files_in(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def bytes_of(path: Path) -> int:
    """Size of a file, or of every file in a folder together."""
    return path.stat().st_size if path.is_file() else sum(item.stat().st_size for item in files_in(path))


def files_in(folder: Path) -> list[Path]:
    """Every file below a folder, sorted by its name in it."""
    return sorted((item for item in folder.rglob("*") if item.is_file()), key=lambda item: item.as_posix())


@cache
def version_of(library: str) -> str:
    """The installed version of a distribution, 'absent' when it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "absent"


def write_json(path: Path, value: Any) -> None:
    """Write JSON whose bytes depend on the value alone, and replace the file in one step."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    write_whole(path, (text + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one clear error.

    Raises:
        InfrastructureError: with the place and what to do.
    """
    try:
        yield
    except OSError as error:
        place = error.filename or where
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InfrastructureError(
                f"{place}: the disk is full. Free some space and run the same command again: finished stages are kept."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InfrastructureError(
                f"{place}: may not be written ({error.strerror}). "
                "Choose another folder with --store or --out, or change its permissions."
            ) from error
        if error.errno == errno.EISDIR:
            raise InfrastructureError(f"{where}: a folder is where a file is needed ({error.strerror}).") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise InfrastructureError(f"{place}: a file is where a folder is needed ({error.strerror}).") from error
        raise


@contextlib.contextmanager
def writing(where: Path) -> Iterator[None]:
    """As `storage_errors`, around a block that does nothing but write: whatever the system refuses is the place's.

    Raises:
        InfrastructureError: with the place and what to do.
    """
    try:
        with storage_errors(where):
            yield
    except OSError as error:
        raise InfrastructureError(
            f"{error.filename or where}: cannot be written ({error.strerror}). Choose another place."
        ) from error


def check_place(path: Path) -> None:
    """Find out before long work whether something can be written at `path`; its parents are made.

    Raises:
        InfrastructureError: it cannot.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{path.name}.probe"
        probe.touch()
        probe.unlink()


def _seal(folder: Path, description: Mapping[str, Any]) -> None:
    write_json(folder / "key.json", description)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(folder / "done.json", {"files": files})
    _sync(folder)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
