"""The files of an .mlpackage folder, none of them outside it."""

from __future__ import annotations

import json
from pathlib import Path

from edgedistill.errors import ForeignFile

# coremltools writes tensors of ten elements and more to the weight file, so a real model file is a few megabytes.
_LARGEST_MODEL_BYTES = 256 * 2**20
_LARGEST_MANIFEST_BYTES = 2**20


def model_file_of(path: Path, root: Path) -> Path:
    """The file of the root model that the package's manifest names.

    Raises:
        ForeignFile: if the manifest is no manifest, or the model is missing, too large or outside the package.
    """
    manifest = inside(path, root, root / "Manifest.json")
    if manifest.stat().st_size > _LARGEST_MANIFEST_BYTES:
        raise ForeignFile(f"{manifest}: too large for a manifest.")
    try:
        content = json.loads(manifest.read_bytes())
        item = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ForeignFile(f"{manifest}: not the manifest of a package ({type(error).__name__}).") from None
    if not isinstance(item, str):
        raise ForeignFile(f"{manifest}: the model's path is not text.")
    model_file = inside(path, root, root / "Data" / item)
    if model_file.stat().st_size > _LARGEST_MODEL_BYTES:
        raise ForeignFile(f"{model_file}: {model_file.stat().st_size} bytes; a model file here is below 268 MB.")
    return model_file


def inside(path: Path, root: Path, wanted: Path) -> Path:
    """`wanted` with links followed, if it is a regular file inside the package; `path` is for the message."""
    try:
        real = wanted.resolve()
        if not real.is_relative_to(root):
            raise ForeignFile(f"{path}: refers to {wanted.name}, which lies outside the package ({real}).")
        if not real.is_file():
            raise ForeignFile(f"{path}: has no file {real.relative_to(root)}.")
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name with a zero byte
        raise ForeignFile(f"{path}: refers to a file that cannot be opened ({error}).") from None
    return real
