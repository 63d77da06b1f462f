"""A stage is finished, or it never happened."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgedistill.errors import InfrastructureError, StageError
from edgedistill.store import (
    CHECKPOINT,
    Finished,
    Store,
    difference,
    is_intact,
    key_of,
    newest,
    storage_errors,
    write_json,
    write_whole,
    writing,
)

PYTHON = [sys.executable, "-c"]


class Work:
    """A stage's work that counts how often it ran."""

    def __init__(self, text: str = "result") -> None:
        self.runs, self.text = 0, text

    def __call__(self, out: Path) -> None:
        self.runs += 1
        (out / "result.txt").write_text(self.text)
        (out / "deep").mkdir()
        (out / "deep" / "more.bin").write_bytes(bytes(range(256)))


def run_stage(store: Store, work: Callable[[Path], None], name: str = "stage", spec: int = 1) -> Finished:
    return store.stage(name, work, revision=1, spec={"x": spec})


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    store, work = Store(tmp_path), Work()
    first = run_stage(store, work)
    again = run_stage(Store(tmp_path), work)
    assert (first.cached, again.cached, work.runs) == (False, True, 1)
    assert first.folder == again.folder
    assert again.file("result.txt").read_text() == "result"
    assert is_intact(first.folder)


def test_what_a_finished_folder_holds_is_written_down_with_sizes_and_hashes(tmp_path: Path) -> None:
    done = run_stage(Store(tmp_path), Work())
    files = json.loads(done.file("done.json").read_text())["files"]
    assert sorted(files) == ["deep/more.bin", "key.json", "result.txt"]
    assert files["result.txt"]["bytes"] == 6
    assert json.loads(done.file("key.json").read_text())["spec"] == {"x": 1}
    assert key_of(json.loads(done.file("key.json").read_text())) == done.key
    assert not done.folder.with_name(f"{done.key}.partial").exists()


def flip_a_byte(folder: Path) -> None:
    path = folder / "deep" / "more.bin"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte edited": flip_a_byte,
    "a byte appended": lambda folder: (folder / "result.txt").write_text("result "),
    "a file deleted": lambda folder: (folder / "result.txt").unlink(),
    "a file made a folder": lambda folder: ((folder / "result.txt").unlink(), (folder / "result.txt").mkdir()),
    "key edited": lambda folder: (folder / "key.json").write_text("{}"),
    "done cut short": lambda folder: os.truncate(folder / "done.json", 20),
    "done empty": lambda folder: os.truncate(folder / "done.json", 0),
    "done deleted": lambda folder: (folder / "done.json").unlink(),
    "done not utf-8": lambda folder: (folder / "done.json").write_bytes(b"\xff\xfe"),
    "done of another shape": lambda folder: (folder / "done.json").write_text("[1]"),
    "done without sizes": lambda folder: (folder / "done.json").write_text('{"files": {"result.txt": {}}}'),
    "done with a list": lambda folder: (folder / "done.json").write_text('{"files": ["result.txt"]}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_stage_is_run_again(tmp_path: Path, damage: str) -> None:
    store, work = Store(tmp_path), Work()
    folder = run_stage(store, work).folder
    DAMAGE[damage](folder)
    assert not is_intact(folder)
    assert not run_stage(store, work).cached
    assert work.runs == 2
    assert is_intact(folder)
    assert run_stage(store, work).cached


def test_a_failure_is_not_remembered_and_its_files_do_not_leak_into_the_next_try(tmp_path: Path) -> None:
    store, seen = Store(tmp_path), []

    def work(out: Path) -> None:
        seen.append(sorted(path.name for path in out.iterdir()))
        if len(seen) == 1:
            (out / "half.txt").write_text("half")
            (out / "folder").mkdir()
            (out / "folder" / "inner.txt").write_text("half")
            (out / "link").symlink_to(out / "folder")
            (out / CHECKPOINT).mkdir()
            (out / CHECKPOINT / "state").write_text("step 7")
            raise StageError("the loss is nan")
        assert (out / CHECKPOINT / "state").read_text() == "step 7"
        (out / "whole.txt").write_text("whole")

    with pytest.raises(StageError, match="nan"):
        run_stage(store, work)
    assert newest(tmp_path, "stage") is None
    done = run_stage(store, work)
    assert not done.cached
    assert seen == [[], [CHECKPOINT]]
    assert sorted(path.name for path in done.folder.iterdir()) == ["done.json", "key.json", "whole.txt"]


def test_a_killed_process_leaves_its_checkpoint_and_nothing_that_looks_finished(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from edgedistill.store import Store\n"
        "def work(out):\n"
        "    (out / 'result.txt').write_text('half'); (out / 'checkpoint').mkdir()\n"
        "    (out / 'checkpoint' / 'state').write_text('kept'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "Store(Path(sys.argv[1])).stage('stage', work, revision=1, spec={'x': 1})"
    )
    assert subprocess.run([*PYTHON, code, str(tmp_path)], check=False).returncode == -9
    found = []

    def work(out: Path) -> None:
        found.extend(str(path.relative_to(out)) for path in sorted(out.rglob("*")))
        (out / "result.txt").write_text("whole")

    assert not run_stage(Store(tmp_path), work).cached
    assert found == [CHECKPOINT, f"{CHECKPOINT}/state"]


def test_the_key_depends_on_name_revision_spec_inputs_and_library_versions() -> None:
    one, two = (Finished("data", key, Path("/nowhere"), cached=True) for key in ("aaaa", "bbbb"))

    def key(name: str = "s", revision: int = 1, spec: object = 1, inputs: tuple[Finished, ...] = (one,),
            libraries: tuple[str, ...] = ("pydantic",)) -> str:  # fmt: skip
        return key_of(Store.describe(name, revision, {"x": spec}, inputs, libraries))

    keys = [key(), key(name="t"), key(revision=2), key(spec=2), key(inputs=(two,)), key(inputs=())]
    keys += [key(inputs=(one, two)), key(inputs=(two, one)), key(libraries=()), key(libraries=("filelock",))]
    assert len(set(keys)) == len(keys)
    assert key() == key()


def test_the_key_contains_the_installed_version_and_says_absent_for_what_is_not_installed() -> None:
    from importlib.metadata import version

    libraries = Store.describe("s", 1, {}, (), ("no-such-library", "filelock"))["libraries"]
    assert libraries == {"filelock": version("filelock"), "no-such-library": "absent"}


def test_the_key_does_not_depend_on_paths_or_on_the_order_of_keys_and_libraries(tmp_path: Path) -> None:
    here, there = (Finished("data", "aaaa", tmp_path / name, cached) for name, cached in (("here", True), ("x", False)))
    first = Store.describe("s", 1, {"a": 1, "b": {"c": 2, "d": (3, 4)}}, (here,), ("filelock", "pydantic"))
    second = Store.describe("s", 1, {"b": {"d": [3, 4], "c": 2}, "a": 1}, (there,), ("pydantic", "filelock"))
    assert key_of(first) == key_of(second)
    one = run_stage(Store(tmp_path / "one"), Work())
    two = run_stage(Store(tmp_path / "two"), Work())
    assert one.key == two.key


def test_equal_work_in_two_stores_leaves_equal_bytes(tmp_path: Path) -> None:
    folders = [run_stage(Store(tmp_path / name), Work()).folder for name in ("one", "two")]
    for name in ("done.json", "key.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_two_processes_on_one_stage_do_the_work_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from edgedistill.store import Store\n"
        "root = Path(sys.argv[1])\n"
        "def work(out):\n"
        "    with (root / 'runs').open('a') as file: file.write('x')\n"
        "    time.sleep(1.5); (out / 'result.txt').write_text('done')\n"
        "print(Store(root).stage('stage', work, revision=1, spec={'x': 1}).cached)"
    )
    both = [subprocess.Popen([*PYTHON, code, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert answers == ["False", "True"]
    assert (tmp_path / "runs").read_text() == "x"


def test_stages_of_one_store_do_not_wait_for_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def outer(out: Path) -> None:
        assert not run_stage(store, Work(), spec=2).cached
        (out / "x").write_text("x")

    assert not run_stage(store, outer).cached


@pytest.mark.parametrize("where", ["root", "stage", "parent"])
def test_a_file_in_place_of_a_folder_is_an_infrastructure_error_that_names_it(tmp_path: Path, where: str) -> None:
    root = tmp_path / "root"
    blocker = {"root": root, "parent": tmp_path / "file", "stage": root / "stage"}[where]
    blocker.parent.mkdir(exist_ok=True)
    blocker.write_text("in the way")
    with pytest.raises(InfrastructureError, match=f"{blocker.name}.*file is where a folder is needed"):
        run_stage(Store(root if where != "parent" else blocker / "root"), Work())


@pytest.mark.parametrize("part", ["root", "stage"])
def test_a_folder_that_may_not_be_written_is_an_infrastructure_error(part: str) -> None:
    code = (
        "import os, sys; from pathlib import Path; from edgedistill.errors import InfrastructureError\n"
        "from edgedistill.store import Store\n"
        "if os.geteuid() == 0: os.setuid(65534)  # root may write anywhere, so the child gives that up\n"
        "try: Store(Path(sys.argv[1])).stage('stage', lambda out: None, revision=1, spec={})\n"
        "except InfrastructureError as error: print('refused:', error)"
    )
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, whose parents are closed to others
        closed = Path(name)
        (closed / "stage").mkdir()
        for folder in (closed / "stage", closed):
            folder.chmod(0o555)
        root = closed if part == "stage" else closed / "root"
        command = [*PYTHON, code, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        closed.chmod(0o755)
    assert "refused:" in done.stdout, done.stderr
    assert "may not be written" in done.stdout
    assert "--store" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which answers every write with ENOSPC")
def test_a_full_disk_is_an_infrastructure_error_and_the_stage_never_happened(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def work(out: Path) -> None:
        (out / "big.bin").symlink_to("/dev/full")
        (out / "big.bin").write_bytes(b"0" * 100_000)

    with pytest.raises(InfrastructureError, match=r"disk is full.*finished stages are kept"):
        run_stage(store, work)
    assert not run_stage(store, Work()).cached


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_errors_of_the_disk_keep_the_place_and_the_cause(code: int) -> None:
    with pytest.raises(InfrastructureError, match="/the/place") as caught, storage_errors(Path("/elsewhere")):
        raise OSError(code, os.strerror(code), "/the/place")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.exit_code == 5


def test_other_errors_pass_through_unchanged() -> None:
    with pytest.raises(FileNotFoundError), storage_errors(Path("/elsewhere")):
        Path("/no/such/file").read_text()


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENAMETOOLONG, errno.ENOSPC])
def test_where_a_block_only_writes_every_error_is_the_places(code: int) -> None:
    with pytest.raises(InfrastructureError, match="/the/place"), writing(Path("/elsewhere")):
        raise OSError(code, os.strerror(code), "/the/place")


def test_difference_names_each_changed_value_by_its_path() -> None:
    old = {"spec": {"rate": 1e-3, "same": 1, "gone": True}, "libraries": {"torch": "2.13"}}
    new = {"spec": {"rate": 2e-3, "same": 1, "new": [1]}, "libraries": {"torch": "2.14"}}
    assert difference(old, new) == [
        'libraries.torch: "2.13" -> "2.14"',
        "spec.gone: true -> null",
        "spec.new: null -> [1]",
        "spec.rate: 0.001 -> 0.002",
    ]
    assert difference(old, old) == []


def test_newest_is_the_description_finished_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert newest(tmp_path, "stage") is None
    for spec in (3, 1, 2):
        done = run_stage(store, Work(), spec=spec)
        os.utime(done.file("done.json"), (time.time() + spec, time.time() + spec))
    found = newest(tmp_path, "stage")
    assert found is not None
    assert found["spec"] == {"x": 3}


def test_write_whole_replaces_the_file_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"ü": 1, "a": 2})
    first = path.read_bytes()
    write_json(path, {"a": 2, "ü": 1})
    assert path.read_bytes() == first
    assert "ü" in path.read_text(encoding="utf-8")
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_write_whole_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", b"x")
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]
