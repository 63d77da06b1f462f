"""Execute an exported file with ONNX Runtime on the CPU.

A static file is optimized as ONNX Runtime does it unasked, which is to compute QDQ groups in integers, as the student
does. Any other runs with each operator as the file has it: optimization would round float activations at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from edgedistill.errors import DataError, StageError
from edgedistill.exporters._quiet import imported, silenced
from edgedistill.exporters.onnx.contents import parse, read
from edgedistill.students import Port, Signature

_DTYPES: dict[str, Literal["int32", "float32"]] = {"tensor(int32)": "int32", "tensor(float)": "float32"}
_FATAL = 4  # of ONNX Runtime's log levels; what fails is raised as an exception anyway


class OnnxRunner:
    """A loaded file."""

    def __init__(self, session: Any) -> None:
        self._session = session

    @cached_property
    def signatures(self) -> Mapping[str, Signature]:
        """The one entry point of the file under the name of its graph; a free size is -1."""
        name = self._session.get_modelmeta().graph_name
        return {name: Signature(name, _ports(self._session.get_inputs()), _ports(self._session.get_outputs()))}

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs of one call, by name.

        Raises:
            DataError: if an input is missing or has another shape or dtype than the file's, or two inputs disagree
                about a free size.
            StageError: if the runtime fails.
        """
        entry = self.signatures[signature]
        sizes: dict[str, int] = {}
        for port, described in zip(entry.inputs, self._session.get_inputs(), strict=True):
            given = feeds.get(port.name)
            fits = given is not None and given.dtype == port.dtype and given.ndim == len(port.shape)
            if given is not None and fits:
                free = zip(described.shape, given.shape, strict=True)
                # a name stands for one size throughout; a number for itself
                fits = all(size == (wanted if isinstance(wanted, int) else sizes.setdefault(str(wanted), size))
                           for wanted, size in free)  # fmt: skip
            if not fits:
                wanted, seen = _words(port.dtype, described.shape), "nothing"
                if given is not None:
                    seen = f"{given.dtype}{list(given.shape)}"
                raise DataError(f"Signature {signature} takes {port.name} as {wanted}, got {seen}.")
        names = [port.name for port in entry.outputs]
        try:
            found = self._session.run(names, {port.name: feeds[port.name] for port in entry.inputs})
        except errors_of() as error:
            raise StageError(f"ONNX Runtime failed in signature {signature}: {_first_line(error)}") from error
        return dict(zip(names, found, strict=True))


def load(path: Path, threads: int = 1) -> OnnxRunner:
    """Open a file for execution on `threads` CPU threads.

    A static file is optimized, as apps have it, because only that makes products of integers of its groups: its codes
    are then the student's. As floats they may be others where a value lies between two codes (`ties.py`), which is
    checked on its own, group by group.

    Raises:
        MissingDependency: if onnxruntime is not installed.
        StageError: if ONNX Runtime refuses the file, or the file refers to another one.
    """
    data = read(path)
    static = any(node.op_type == "QuantizeLinear" for node in parse(path, data).graph.node)
    session = session_of(path, data, threads, optimized=static)  # the bytes that were checked, not the file anew
    odd = {port.type for port in (*session.get_inputs(), *session.get_outputs())} - _DTYPES.keys()
    if odd:
        raise StageError(f"{path}: has an input or output of type {min(odd)}, which no student has.")
    return OnnxRunner(session)


def session_of(path: Path, data: bytes, threads: int = 1, *, optimized: bool = False) -> Any:
    """A session of ONNX Runtime for `data`, which is `path`'s content or was made from it.

    `optimized` is the level that it has unless told, ORT_ENABLE_ALL; otherwise operators run as they are.

    Raises:
        MissingDependency, StageError: as `load`.
    """
    runtime = require()
    options = runtime.SessionOptions()
    level = runtime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _FATAL
    try:
        with silenced():
            return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except errors_of() as error:
        raise StageError(f"ONNX Runtime cannot load {path}: {_first_line(error)} Export it again.") from error


def require() -> Any:
    """The module `onnxruntime`.

    Raises:
        MissingDependency: if it is not installed.
    """
    return imported("onnxruntime", "Running .onnx needs ONNX Runtime", "'edgedistill[onnx]'")


def errors_of() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises; its errors have no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*kinds, RuntimeError, ValueError)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _ports(described: Sequence[Any]) -> tuple[Port, ...]:
    return tuple(
        Port(item.name, tuple(n if isinstance(n, int) else -1 for n in item.shape), _DTYPES[item.type])
        for item in described
    )


def _words(dtype: str, shape: Sequence[Any]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"
