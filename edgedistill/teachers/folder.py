"""A teacher in a local folder in Hugging Face format."""

from __future__ import annotations

from pathlib import Path

from edgedistill.specs import TeacherSource
from edgedistill.teachers._files import Located, locate_folder


def locate(source: TeacherSource) -> Located | None:
    """The teacher in the folder `source.name`, or None when there is no such folder.

    Raises:
        TeacherError: if the folder cannot be used.
    """
    folder = Path(source.name).expanduser()
    return locate_folder(source, folder) if folder.is_dir() else None
