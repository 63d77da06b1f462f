"""The plain `ssh` and `scp` programs, so that the user's own configuration, agent and jump hosts count."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from shlex import quote

from edgedistill.errors import InfrastructureError, MissingDependency, SpecError
from edgedistill.runners._transport import SHELL_S, run_quietly

CONNECT_S = 10
MEANINGS = (
    ("No space left", "its storage is full. Free some space and run the same command again"),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key is not the one that is known. Was it set up anew? Then "
     "`ssh-keygen -R HOST`, and connect once by hand"),
    ("Host key verification failed", "its host key is not known. Connect once by hand (`ssh HOST`) and accept it"),
    ("Permission denied", "it lets nobody in without a password. Set up a key: `ssh-copy-id USER@HOST`"),
    ("Could not resolve", "no such host. Check the name, or use its address"),
    ("Name or service not known", "no such host. Check the name, or use its address"),
    ("Connection refused", "no ssh server listens there. Start one on the board (`sudo systemctl enable --now ssh`)"),
    ("timed out", "it does not answer. Is it switched on and in this network?"),
    ("No route to host", "it cannot be reached from this network"),
    ("Network is unreachable", "it cannot be reached from this network"),
    ("Bad configuration option", "ssh cannot read its configuration"),
    ("No such file or directory", "the file is not there: the program on the device ended before it was written"),
)  # fmt: skip
AWAY = ("Connection refused", "timed out", "No route to host", "Network is unreachable")


class Ssh:
    """A board as `user@host`, `host` or `user@host:port`; anything else stands in the user's ssh configuration."""

    runner = "ssh"

    def __init__(self, where: str) -> None:
        found = re.fullmatch(r"((?:[\w.-]+@)?(?:[\w.-]+|\[[0-9a-fA-F:]+\]))(?::(\d{1,5}))?", where)
        if not found or where.startswith("-"):
            raise SpecError(f"--on ssh:{where}: write --on ssh:USER@HOST, or ssh:USER@HOST:PORT.")
        self.name = f"ssh:{where}"
        self._host, self._port = found[1].replace("[", "").replace("]", ""), found[2]
        programs = {name: shutil.which(name) for name in ("ssh", "scp")}
        if missing := [name for name, path in programs.items() if not path]:
            raise MissingDependency(f"--on {self.name}: no {missing[0]} program: `apt install openssh-client`.")
        self._sockets = tempfile.TemporaryDirectory(prefix="edgedistill-")  # a socket's path must be short
        self._options = [
            *(["-F", config] if (config := os.environ.get("EDGEDISTILL_SSH_CONFIG")) else []),
            "-o", "BatchMode=yes",
            "-o", f"ConnectTimeout={CONNECT_S}",
            "-o", "ServerAliveInterval=5",
            "-o", "ServerAliveCountMax=3",
            "-o", "ControlMaster=auto",
            "-o", f"ControlPath={self._sockets.name}/%C",
            "-o", "ControlPersist=60",
        ]  # fmt: skip

    def connect(self) -> None:
        """Log in once; later commands share the line.

        Raises:
            InfrastructureError: it is not there, or does not let us in.
        """
        try:
            done = self.shell("exit 0", CONNECT_S + SHELL_S)
        except subprocess.TimeoutExpired:
            raise InfrastructureError(f"{self.name}: {self.explain('timed out')}") from None
        if done.returncode:
            raise InfrastructureError(f"{self.name}: {self.explain(done.stderr.decode('utf-8', 'replace'))}")

    def shell(self, script: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """The login shell may be any: what it is given is one quoted text for `sh`."""
        port = ["-p", self._port] if self._port else []
        return run_quietly(["ssh", *self._options, *port, "-T", "--", self._host, f"sh -c {quote(script)}"], timeout_s)

    def push(self, local: Path, remote: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """`scp` there; the remote path is one of ours and needs no quoting."""
        return self._copy(str(local.resolve()), f"{self._bracketed}:{remote}", timeout_s)

    def pull(self, remote: str, local: Path, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """`scp` here."""
        return self._copy(f"{self._bracketed}:{remote}", str(local.resolve()), timeout_s)

    def explain(self, output: str) -> str:
        """What ssh's words mean; words that are not known are told as they are."""
        for words, meaning in MEANINGS:
            if words.lower() in output.lower():
                return meaning
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        told = f" ssh's last line: {lines[-1][:200]}" if lines else ""
        return f"the line was lost, or the command was killed there. Run the same command again.{told}"

    def lost(self, output: str) -> bool:
        """Words that are not known, and those of a board that is away for now."""
        meant = next((words for words, _ in MEANINGS if words.lower() in output.lower()), "")
        return meant in ("", *AWAY)

    def hang_up(self) -> None:
        """End the shared connection; a dead one would be taken again."""
        try:
            port = ["-p", self._port] if self._port else []
            run_quietly(["ssh", *self._options, *port, "-O", "exit", "--", self._host], SHELL_S)
        except (subprocess.TimeoutExpired, OSError):
            pass  # it ends by itself after a minute

    def close(self) -> None:
        """End the shared connection."""
        self.hang_up()
        self._sockets.cleanup()

    @property
    def _bracketed(self) -> str:
        user, at, host = self._host.rpartition("@")
        return f"{user}{at}[{host}]" if ":" in host else self._host

    def _copy(self, source: str, destination: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        port = ["-P", self._port] if self._port else []
        return run_quietly(["scp", "-q", *self._options, *port, "--", source, destination], timeout_s)
