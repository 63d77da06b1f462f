"""Real daemons of Debian in namespaces of their own: nothing of this machine listens to them, or is changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from debian import NotHere

ENTER = Path(__file__).with_name("enter.py")
# It goes with the test's process, however that ends.
ALONE = (
    "setpriv", "--pdeathsig", "KILL", "unshare", "--user", "--map-root-user", "--net", "--mount", "--pid",
    "--mount-proc", "--fork", "--kill-child",
)  # fmt: skip
PORT = 15555  # not one of those where adb looks for emulators


# With a range of user ids, which only root may give away: a daemon that changes its user needs one.
MANY = (
    "setpriv", "--pdeathsig", "KILL", "unshare", "--user", "--keep-caps", "--net", "--mount", "--pid", "--fork",
    "--kill-child",
)  # fmt: skip


@dataclass
class Boxed:
    """A daemon in its namespaces, and the way in."""

    process: subprocess.Popen[bytes]
    inner: int
    folder: Path
    also: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def client(self, program: str, environment: Mapping[str, str]) -> Path:
        """A program that runs `program` of this machine in the daemon's network."""
        path = self.folder / f"{Path(program.split()[-1]).name}-inside"
        told = " ".join(f"{key}='{value}'" for key, value in environment.items())
        way = f"nsenter --target {self.inner} --user --preserve-credentials --net"
        path.write_text(f'#!/bin/sh\nexec {way} env {told} {program} "$@"\n')
        path.chmod(0o755)
        return path

    def close(self) -> None:
        """End everything in the namespaces: they go with their first process."""
        for process in (self.process, *self.also):
            process.kill()
            process.wait()
        if self.process.stderr:
            self.process.stderr.close()


def start(
    folder: Path, command: Sequence[str], *, root: Path | None = None, qemu: str = "",
    environment: Mapping[str, str] | None = None, users: bool = False,
) -> Boxed:  # fmt: skip
    """Start a daemon; with `users`, where all ids of users exist.

    Raises:
        NotHere: the kernel or the user may not make namespaces, or the daemon ends at once.
    """
    for program in ("unshare", "nsenter", "setpriv"):
        if not shutil.which(program):
            raise NotHere(f"needs {program} (util-linux)")
    if users and os.getuid() != 0:
        raise NotHere("a daemon that changes its user needs a range of user ids, which only root may give away")
    process = subprocess.Popen(
        [*(MANY if users else ALONE), sys.executable, str(ENTER), str(root or ""), qemu, *command],
        env={**os.environ, **(environment or {}), "ED_WAIT": "1" if users else ""},
        stdin=subprocess.PIPE if users else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            process.stdin = None
            raise NotHere(f"no private namespaces here: {process.communicate()[1].decode()[-300:].strip()}")
        found = children.read_text().split() if children.exists() else []
        if found and process.stdin and not process.stdin.closed:
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{found[0]}/{name}").write_text("0 0 65536\n")
            process.stdin.write(b"go\n")
            process.stdin.close()
        if found and listens(int(found[0])):
            return Boxed(process, int(found[0]), folder)
        time.sleep(0.1)
    process.kill()
    process.stdin = None
    raise NotHere(f"the daemon does not listen after 20 s: {process.communicate()[1].decode()[-300:].strip()}")


def listens(pid: int, port: int = PORT) -> bool:
    """Whether anything in the process's network listens on the port."""
    tables = [Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6")]
    return any(f":{port:04X} " in table.read_text() for table in tables if table.exists())
