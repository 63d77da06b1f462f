"""Trees of Debian packages in a cache folder: fetched with a private apt, unpacked, not installed, no root needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
WHEELS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


class NotHere(Exception):
    """This machine cannot have such a tree; the message is the reason for a skip."""


@dataclass(frozen=True)
class Tree:
    """Packages of one architecture out of some suites, the first of which is preferred; `only` one file is kept."""

    name: str
    architecture: str
    suites: tuple[str, ...]
    packages: tuple[str, ...]
    wheels: tuple[str, ...] = ()
    only: str = ""


ADBD_X86 = Tree("adbd-amd64", "amd64", ("bookworm-backports", "bookworm"), ("adbd", "adb"))
QEMU = Tree("qemu", "amd64", ("bookworm-backports",), ("qemu-user",), only="usr/bin/qemu-aarch64")
PHONE = Tree(
    "phone-arm64", "arm64", ("bookworm-backports", "bookworm"),
    ("adbd", "python3.11", "dash", "coreutils", "grep", "base-files", "openssh-server", "openssh-sftp-server"),
    ("ai-edge-litert==2.3.0", "numpy==2.2.6"),
)  # fmt: skip
LLAMA = Tree("llama-arm64", "arm64", ("sid",), ("llama.cpp-tools", "libc6"))


def folder_of(tree: Tree) -> Path:
    """The unpacked tree; made once, kept in `$EDGEDISTILL_DEVICE_CACHE` or the user's cache.

    Raises:
        NotHere: no apt, no network, no such package.
    """
    base = Path(os.environ.get("EDGEDISTILL_DEVICE_CACHE") or platformdirs.user_cache_path("edgedistill-devices"))
    base.mkdir(parents=True, exist_ok=True)
    root = base / tree.name
    with filelock.FileLock(base / f"{tree.name}.lock"):
        wanted = json.dumps([tree.architecture, tree.suites, tree.packages, tree.wheels, tree.only])
        done = root / ".tree.json"
        if not done.exists() or done.read_text() != wanted:
            shutil.rmtree(root, ignore_errors=True)
            (root / "debs" / "partial").mkdir(parents=True)
            _unpack(tree, root)
            done.write_text(wanted)
    return root


def _unpack(tree: Tree, root: Path) -> None:
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise NotHere(f"needs {program}: only Debian and its kin can fetch the device's packages")
    if not Path(KEYRING).exists():
        raise NotHere("needs debian-archive-keyring")
    state = root / "apt"
    (state / "lists" / "partial").mkdir(parents=True)
    (state / "status").touch()
    lines = [f"deb [signed-by={KEYRING}] {MIRROR} {suite} main" for suite in tree.suites]
    (state / "sources.list").write_text("\n".join(lines) + "\n")
    (state / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{state}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        f'Dir::State::lists "{state}/lists";\nDir::State::status "{state}/status";\nDir::Cache "{state}";\n'
        f'Dir::Cache::archives "{root}/debs";\nDir::Etc::preferencesparts "/dev/null";\nDebug::NoLocking "1";\n'
        f'APT::Architecture "{tree.architecture}";\nAPT::Architectures "{tree.architecture}";\n'
        'APT::Install-Recommends "0";\nAPT::Sandbox::User "root";\nAcquire::Languages "none";\n'
    )
    settings = {**os.environ, "APT_CONFIG": str(state / "apt.conf")}
    _run(["apt-get", "-q", "update"], settings)
    _run(["apt-get", "-q", "-y", "--download-only", "-t", tree.suites[0], "install", *tree.packages], settings)
    for deb in sorted((root / "debs").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(root)], settings)
    if tree.wheels:
        platforms = [word for tag in WHEELS for word in ("--platform", tag)]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-input", "--only-binary=:all:"]
        _run([*pip, "--python-version", "3.11", *platforms, "--target", str(root / "site"), *tree.wheels], settings)
    if tree.only:
        kept = root / Path(tree.only).name
        shutil.move(root / tree.only, kept)
        for other in set(root.iterdir()) - {kept, state, root / "debs"}:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    for name in ("doc", "man", "locale", "info"):
        shutil.rmtree(root / "usr" / "share" / name, ignore_errors=True)
    shutil.rmtree(state)
    shutil.rmtree(root / "debs")


def _run(command: list[str], settings: dict[str, str]) -> None:
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=550, check=False)
    if done.returncode:
        raise NotHere(f"{command[0]} {command[-1]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
