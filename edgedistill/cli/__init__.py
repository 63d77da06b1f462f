"""The command line: the only place that knows exit codes, catches errors, prints, and quietens other libraries.

Nothing is imported here beyond the standard library, so that the handlers stand before anything can go wrong.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141
DEBUG = "EDGEDISTILL_DEBUG"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_stopped_by: list[int] = []


def main() -> NoReturn:
    """Run the command in `sys.argv` and exit with its code."""
    # A terminal that cannot show a character gets a substitute, not a crash.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while the end of the command was being told
        code = _interrupted()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
        _close_output()
    # Libraries keep threads and buffers that would otherwise have their own say at the end.
    if _stopped_by:  # and an interpreter that was interrupted inside a library tells that instead of the code
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(args: Sequence[str]) -> int:
    """Run a command and return its exit code; every error has been told on stderr."""
    wanted, debug = _without_debug(args)
    quieten_libraries()
    try:
        with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
            signal.signal(signal.SIGTERM, _stop)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the caller ignores it
                signal.signal(signal.SIGINT, _stop)
        from edgedistill.cli.app import app

        app(wanted, prog_name="edgedistill")
    except SystemExit as end:  # how Typer always ends; Ctrl-C is 130
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        _document_usage(end, wanted, code)
        return _interrupted() if code == INTERRUPTED or (code and _stopped_by) else code
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        _close_output()
        return BROKEN_PIPE
    except Exception as error:
        if _stopped_by:  # a library that was interrupted as it was imported makes an error of its own of it
            return _interrupted()
        if debug:
            import traceback

            traceback.print_exc()
        return _explain(error)
    return 0


def _document_usage(end: SystemExit, args: Sequence[str], code: int) -> None:
    """Write what Typer has told of a wrong option as a document too, where `--json` asked for one."""
    tell = getattr(end.__context__, "format_message", None)
    if tell is None or "--json" not in (args[: args.index("--")] if "--" in args else args):
        return
    from edgedistill.cli import output

    output.json_document({"error": {"type": "UsageError", "message": tell(), "exit_code": code}})


def quieten_libraries() -> None:
    """Set the log levels of libraries before they are imported; their errors, and ours, are still shown."""
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "GLOG_minloglevel": "2",
        "ABSL_MIN_LOG_LEVEL": "2",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    # torchao warns about CUDA kernels that this build has no use for, torch about an enum inside torchao.
    for name in ("torchao", "torch.utils._pytree", "torch.export", "litert_torch", "absl", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _without_debug(args: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--debug`, which may stand anywhere, and whether it or the variable was given."""
    end = args.index("--") if "--" in args else len(args)
    kept = [item for place, item in enumerate(args) if item != "--debug" or place > end]
    return kept, len(kept) < len(args) or os.environ.get(DEBUG, "") not in ("", "0")


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a build as Ctrl-C does, so that whatever is open is closed.

    While a library is imported the end waits for it, or for a second signal: torch aborts the whole process when it is
    interrupted there, and others make an error of their own of it.
    """
    first = not _stopped_by
    if number != signal.SIGALRM:
        _stopped_by.append(number)
    if _is_importing(frame) and (first or number == signal.SIGALRM):
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _interrupted() -> int:
    _tell("interrupted; run the same command to continue: finished stages are kept")
    return TERMINATED if signal.SIGTERM in _stopped_by else INTERRUPTED


def _explain(error: Exception) -> int:
    """Tell the error on one line, or as its own message says; returns the exit code."""
    from edgedistill.errors import EdgedistillError

    if isinstance(error, EdgedistillError):
        return _end(str(error), error.exit_code, error)
    if isinstance(error, OSError) and error.errno in DISK:
        return _end(_of_the_disk(error), 5, error)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # any look at such a path fails
        return _end(f"{str(error.filename)[:60]}…: the name is longer than the system allows.", 2, error)
    if "No space left on device" in str(error):  # as libraries written in Rust and C++ say it
        return _end(f"the disk is full ({error}). Free some space and run the same command again.", 5, error)
    if isinstance(error, MemoryError):
        return _end("out of memory. Close other programs, or choose a smaller batch_size.", 5, error)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("edgedistill"):
        return _end(
            f"the package {error.name!r} is not installed. `edgedistill doctor` says what to install.", 2, error
        )
    first = (str(error).strip().splitlines() or [""])[0]
    told = f"unexpected {type(error).__name__}{': ' if first else ''}{first}"
    return _end(f"{told}\nThis is a bug of edgedistill. {DEBUG}=1 (or --debug) shows the traceback.", 1, error)


def _of_the_disk(error: OSError) -> str:
    from edgedistill.errors import InfrastructureError
    from edgedistill.store import storage_errors

    try:
        with storage_errors(Path.cwd()):
            raise error
    except (InfrastructureError, OSError) as clear:
        return str(clear)


def _end(message: str, code: int, error: Exception) -> int:
    """Tell the message and, when `--json` asked for a document and none was written, write the error as one."""
    from edgedistill.cli import output

    _tell(f"error: {output.clean(message)}")
    if output.wants_json() and not output.wrote_json():
        output.json_document({"error": {"type": type(error).__name__, "message": message, "exit_code": code}})
    return code


def _tell(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens any more
        print(message, file=sys.stderr, flush=True)


def _close_output() -> None:
    """Point stdout at nothing, so that the interpreter's own flush at exit cannot complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
