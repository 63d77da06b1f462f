"""What several tests of commands share."""

from pathlib import Path

import pytest
from saying import Say

from edgedistill.cli import run


@pytest.fixture(scope="session")
def host_bundle(cli, tiny_bundle, tiny_store, tmp_path_factory):
    """The tiny build again for this machine; all but its measurement is taken from the store."""
    folder = tmp_path_factory.mktemp("host") / "host-tiny"
    done = cli("build", "--target", "host", "--profile", "tiny", "--store", tiny_store, "--out", folder, "--quiet")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Say:
    """`say("plan", …)` in this process, with a store of its own: exit code, stdout, stderr."""

    def call(command: str, *args: object, store: Path | None = None) -> tuple[int, str, str]:
        code = run([command, *map(str, args), "--store", str(store or tmp_path / "store")])
        seen = capsys.readouterr()
        return code, seen.out, " ".join(seen.err.split())

    return call
