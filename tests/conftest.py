"""The command line as a person runs it, and one real build of the tiny profile that tests share."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The suite runs as two processes on two cores; more threads in each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A suite started in the background of a shell inherits an ignored SIGINT, and so would every build that a test starts;
# a program's Ctrl-C could then not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

Cli = Callable[..., subprocess.CompletedProcess[str]]


def _run(*args: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EDGEDISTILL_")}
    return subprocess.run(
        [sys.executable, "-m", "edgedistill", *map(str, args)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        env={**clean, "OMP_NUM_THREADS": "1", **env},
    )


@pytest.fixture(scope="session")
def cli() -> Cli:
    """`cli("plan", "--target", "host")`: run the command in a process of its own; keywords are its environment."""
    return _run


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store; `tiny_bundle` fills it."""
    return tmp_path_factory.mktemp("tiny") / "store"


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path, cli: Cli) -> Path:
    """The bundle of a real build: profile tiny, target pixel8, one thread. Tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("bundle") / "pixel8-tiny"
    done = cli("build", "--target", "pixel8", "--profile", "tiny", "--store", tiny_store, "--out", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
