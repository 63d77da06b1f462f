"""Memory that was freed, back to the system: a large file is loaded several times while it is made and proven."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Hand what is free in the C heap to the system. glibc keeps freed blocks of up to 32 MB for itself, which of a
    language model's weights is all of them; other C libraries give them back by themselves.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
