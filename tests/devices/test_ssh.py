"""A board behind a real OpenSSH server on this machine, as an ordinary or as the only user."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from phones import QUICK, left_over, put

from edgedistill.errors import EdgedistillError, InfrastructureError, SpecError
from edgedistill.runners import How, Job, ssh
from edgedistill.specs import Measurement, Provenance

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
pytestmark = pytest.mark.skipif(
    not SSHD or not shutil.which("ssh"), reason="needs an ssh server: apt install openssh-server"
)


@dataclass
class Board:
    """A server with its keys, and the client's configuration that knows it."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def where(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    assert SSHD
    process = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", folder / "sshd_config", "-p", str(port)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return process
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    raise AssertionError("sshd does not listen")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a server's and a client's key, and both configurations."""
    folder = tmp_path_factory.mktemp("ssh")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a server that is started by root drops its privileges
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=20)
    (folder / "authorized").write_bytes((folder / "client.pub").read_bytes())
    root = folder / "tmp"
    root.mkdir()
    (folder / "bin").mkdir()
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nUsePAM no\nStrictModes no\n"
        f"PasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\nListenAddress 127.0.0.1\n"
        f"Subsystem sftp internal-sftp\nSetEnv TMPDIR={root} PATH={folder}/bin:{os.environ['PATH']}\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/client\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known\n"
        f"  StrictHostKeyChecking accept-new\n"
    )
    return folder


@pytest.fixture
def board(keys: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("EDGEDISTILL_SSH_CONFIG", str(keys / "ssh_config"))
    made = Board(port, keys, start(keys, port))
    yield made
    made.process.kill()
    made.process.communicate()


def bench(board: Board, job: Job, **how: object) -> Measurement:
    told = How(**{"where": board.where, "python": sys.executable, **how})  # type: ignore[arg-type]
    return ssh.measure_many({"m": job}, launches=1, timing=QUICK, how=told)["m"]


def test_a_board_is_measured_and_left_clean(board: Board, job: Job) -> None:
    seen = bench(board, job)
    assert seen.provenance is Provenance.MEASURED
    assert seen.outputs is not None
    assert (seen.outputs.labels_agree, seen.outputs.max_abs_difference) == (16, 0.0)
    assert seen.fingerprint is not None
    assert seen.fingerprint.runner == "ssh"
    assert seen.launches[0].before.load_average is not None
    assert left_over(board.folder / "tmp") == []


@pytest.mark.parametrize(
    ("where", "kind", "message"),
    [
        ("-oProxyCommand=touch", SpecError, "write --on ssh:USER@HOST"),
        ("pi@host;reboot", SpecError, "write --on ssh:USER@HOST"),
        ("nobody@127.0.0.1:9", InfrastructureError, "no ssh server listens there"),
        ("pi@no-such-host.invalid", InfrastructureError, "no such host"),
    ],
)
def test_a_board_that_is_not_there(
    board: Board, job: Job, where: str, kind: type[EdgedistillError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        bench(board, job, where=where)


def test_a_key_that_is_not_known(board: Board, job: Job) -> None:
    kept = (board.folder / "authorized").read_bytes()
    (board.folder / "authorized").write_text("")
    try:
        with pytest.raises(InfrastructureError, match="ssh-copy-id"):
            bench(board, job)
    finally:
        (board.folder / "authorized").write_bytes(kept)


def test_another_host_key(board: Board, job: Job) -> None:
    other = (board.folder / "client.pub").read_text().split()[:2]
    (board.folder / "known").write_text(f"[127.0.0.1]:{board.port} {' '.join(other)}\n")
    with pytest.raises(InfrastructureError, match="ssh-keygen -R"):
        bench(board, job)
    (board.folder / "known").unlink()


def cut(board: Board, condition: str) -> str:
    """A Python that ends its own session's server process: what a cable or a power cut looks like from here."""
    put(board.folder / "bin" / "cutpython", f'''
case "$*" in *_program*) if {condition}; then p=$$; while [ "$p" -gt 1 ]; do
q=$p; read -r _ _ _ p _ <"/proc/$q/stat"; case "$(cat /proc/$q/comm)" in sshd*) kill -9 "$q"; break;; esac
done; sleep 5; fi;; esac
exec {sys.executable} "$@"''')  # fmt: skip
    return "cutpython"


def test_a_line_that_breaks_is_not_the_models_fault(board: Board, job: Job) -> None:
    with pytest.raises(InfrastructureError, match=r"line was lost.*lost each time") as caught:
        bench(board, job, python=cut(board, "true"))
    assert caught.value.exit_code == 5


def test_a_line_that_comes_back_is_taken_up_again(board: Board, job: Job) -> None:
    once = board.folder / "once"
    seen = bench(board, job, python=cut(board, f"[ ! -e {once} ] && touch {once}"))
    assert seen.context["reconnections"] == 1
    assert seen.outputs is not None
    assert (seen.outputs.labels_agree, seen.outputs.max_abs_difference) == (16, 0.0)
    assert left_over(board.folder / "tmp") == []
