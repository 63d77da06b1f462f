"""A teacher inside an installed Python package: its weights file is data, the package is never imported."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from edgedistill.errors import TeacherError
from edgedistill.specs import TeacherSource
from edgedistill.teachers import _files
from edgedistill.teachers._files import Located, locate_folder

SHIPPED = Path(__file__).parent / "shipped"
"""Config and vocabulary of teachers whose package holds weights alone, by distribution name."""


def locate(source: TeacherSource) -> Located | None:
    """The weights `source.file` of the distribution `source.name`, or None when it is not installed.

    Raises:
        TeacherError: if the package has no such file, or it is not the pinned one.
    """
    try:
        distribution = metadata.distribution(source.name)
    except metadata.PackageNotFoundError:
        return None
    if source.file not in {str(item) for item in distribution.files or ()}:
        raise TeacherError(f"package {source.name} {distribution.version} holds no file {source.file!r}.")
    weights = Path(str(distribution.locate_file(source.file)))
    if weights.name == "model.safetensors":
        return locate_folder(source, weights.parent)
    if weights.suffix != ".onnx":
        raise TeacherError(f"package {source.name}: {source.file!r} is neither model.safetensors nor ONNX.")
    folder = SHIPPED / source.name
    return Located(source, folder, weights, _files.weights_hash(weights, source.sha256), _files.read_config(folder))
