"""The command line as a person runs it, and one real build of the tiny profile that tests share."""

import functools
import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# The suite runs as two processes on two cores; more threads in each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A suite started in the background of a shell inherits an ignored SIGINT, and so would every build that a test starts;
# a program's Ctrl-C could then not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

Cli = Callable[..., subprocess.CompletedProcess[str]]


# Files that take half a minute and more, the longest first: a process that met one of them last would leave the other
# idle. Those of devices mostly wait: they are apart, so that seldom both processes do.
LONG = (
    "exporters/test_contract.py", "exporters/test_contract_schemes.py", "pipeline/test_build.py",
    "devices/test_meters.py", "exporters/test_static.py",
    "pipeline/test_own_data.py", "cli/test_cli_build.py", "devices/test_adb_lines.py", "exporters/test_tflite_forms.py",
    "test_house_rules.py", "cli/test_cli_gate.py", "devices/test_adb_fitness.py", "pipeline/test_bad_input.py",
    "exporters/test_tflite.py", "devices/test_ssh.py", "exporters/litertlm/test_litertlm.py", "devices/test_adb.py",
    "runners/test_texts.py", "pipeline/test_build_assistants.py", "pipeline/test_formats.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, all others as they were."""
    ranks = {name: rank for rank, name in enumerate(LONG)}

    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((place for name, place in ranks.items() if path.endswith(f"/tests/{name}")), len(LONG))

    items.sort(key=rank)


# Tests, and these packages once imported, are 10^6 objects that stay. While they are made the garbage collector takes a
# quarter of the time and finds nothing; later, a full collection of them takes 0.4 s. So they are set aside.
HEAVY = ("coremltools", "litert_torch", "onnxscript", "transformers")
# What a conversion makes lives until its end: looking for garbage after each 700 objects takes a tenth of its time.
gc.set_threshold(50_000, *gc.get_threshold()[1:])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    _set_aside(sum(name in sys.modules for name in HEAVY))


@functools.cache
def _set_aside(imported: int) -> None:
    """Once for each number of these packages: what is garbage by then is collected, all else is there to stay."""
    if imported:
        gc.collect()
        gc.freeze()


def _run(*args: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    # where no process may keep what it compiled, each of hundreds compiles the package anew
    left_out = ("EDGEDISTILL_", "PYTHONDONTWRITEBYTECODE")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
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
def tiny_build(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """A real build on a cold store: profile tiny, target pixel8, one thread. It is made once for all processes of a
    run, and nobody changes it: `store`, and the bundle `pixel8-tiny`.
    """
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "tiny_build"
    with FileLock(f"{folder}.lock"):
        store, bundle = folder / "store", folder / "pixel8-tiny"
        if not bundle.exists():  # it appears when it is finished
            done = cli("build", "--target", "pixel8", "--profile", "tiny", "--store", store, "--out", bundle,
                       PYTHONHASHSEED="1")  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def tiny_store(tiny_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny build's store, to build with."""
    return Path(shutil.copytree(tiny_build / "store", tmp_path_factory.mktemp("tiny") / "store"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_build: Path) -> Path:
    """The tiny build's bundle. Tests that change it copy it first."""
    return tiny_build / "pixel8-tiny"
