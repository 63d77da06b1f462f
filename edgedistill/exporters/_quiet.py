"""Silence for libraries that write to the terminal while they are imported, or while an exporter works."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from edgedistill.errors import MissingDependency


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Send what C++ and Python libraries write to stdout and stderr to nowhere, warnings and log records included."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    disabled = logging.root.manager.disable
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, copy in enumerate(saved, start=1):
                os.dup2(copy, target)
                os.close(copy)
            logging.disable(disabled)


def imported(name: str, need: str, install: str) -> Any:
    """The module `name`, imported in silence.

    Raises:
        MissingDependency: if it is not installed; `need`, such as "Export to GGUF needs gguf", and what to `install`.
    """
    try:
        with silenced():
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(f"{need} ({error}): pip install {install}") from None
