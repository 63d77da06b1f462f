"""Execute an exported file with LiteRT's interpreter and XNNPACK, as an app on a phone does."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import DataError, ForeignFile, StageError, VerificationError
from edgedistill.exporters._quiet import imported, silenced
from edgedistill.exporters.tflite.reading import parse
from edgedistill.students import Port, Signature

_DTYPES: dict[type, Literal["int32", "float32"]] = {np.int32: "int32", np.float32: "float32"}


class TfliteRunner:
    """A loaded file."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._runners: dict[str, Any] = {}
        self._ran: set[str] = set()

    @cached_property
    def signatures(self) -> Mapping[str, Signature]:
        """The entry points that the file describes, by name; the one with the smallest inputs first."""
        found = {}
        for name in self._interpreter.get_signature_list():
            runner = self._runner(name)
            found[name] = Signature(name, _ports(runner.get_input_details()), _ports(runner.get_output_details()))
        return dict(sorted(found.items(), key=lambda item: [port.shape for port in item[1].inputs]))

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs of one call, by name.

        Raises:
            DataError: if an input is missing or has another shape or dtype than the file's.
            StageError: if the runtime fails.
        """
        for port in self.signatures[signature].inputs:
            given = feeds.get(port.name)
            if given is None or given.shape != port.shape or given.dtype != port.dtype:
                seen = "nothing" if given is None else f"{given.dtype}{list(given.shape)}"
                raise DataError(
                    f"Signature {signature} takes {port.name} as {port.dtype}{list(port.shape)}, got {seen}."
                )
        try:
            # the first use creates the XNNPACK delegate, which announces itself
            with contextlib.nullcontext() if signature in self._ran else silenced():
                out: dict[str, NDArray[Any]] = self._runner(signature)(**feeds)
            self._ran.add(signature)
        except (RuntimeError, ValueError) as error:
            raise StageError(f"LiteRT failed in signature {signature}: {str(error).splitlines()[0]}.") from error
        return out

    def _runner(self, name: str) -> Any:
        if name not in self._runners:
            self._runners[name] = self._interpreter.get_signature_runner(name)
        return self._runners[name]


def require() -> Any:
    """LiteRT's module with the interpreter.

    Raises:
        MissingDependency: if ai-edge-litert is not installed.
    """
    return imported("ai_edge_litert.interpreter", "Running .tflite needs LiteRT", "ai-edge-litert")


def load(path: Path, threads: int = 1, content: bytes | None = None) -> TfliteRunner:
    """Open a file for execution on `threads` CPU threads; `content` is what it holds, if that is not to be read.

    Raises:
        MissingDependency: if ai-edge-litert is not installed.
        ForeignFile: if the file is no .tflite, or damaged.
        StageError: if it is none of ours, or LiteRT refuses it.
    """
    runtime = require()
    try:
        if content is None:
            parse(path)  # the interpreter is C++: nothing that does not hold together gets there
        source = {"model_path": str(path)} if content is None else {"model_content": content}
        with silenced():
            runner = TfliteRunner(runtime.Interpreter(**source, num_threads=threads))
            _ = runner.signatures
            return runner
    except ForeignFile:  # says it all, and has an exit code of its own
        raise
    except (VerificationError, RuntimeError, ValueError) as error:
        raise StageError(f"LiteRT cannot load {path}: {str(error).splitlines()[0]}. Export it again.") from error


def _ports(details: Mapping[str, Mapping[str, Any]]) -> tuple[Port, ...]:
    """Inputs or outputs of a signature, ids before masks: in the order of their names, reversed.

    Raises:
        ValueError: for a type that no file of this package has there.
    """
    ports = []
    for name, item in sorted(details.items(), reverse=True):
        dtype = _DTYPES.get(item["dtype"])
        if dtype is None:
            raise ValueError(f"{name} is of a type other than {', '.join(_DTYPES.values())}")
        ports.append(Port(name, tuple(int(size) for size in item["shape"]), dtype))
    return tuple(ports)
