"""A small model, and a phone that is a thread: adb's own client in front, faults behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_adbd import FakeAdbd
from phones import BATTERY, THERMAL, put

from edgedistill.runners import Job

HERE = Path(__file__).parent
GETPROP = {
    "ro.product.manufacturer": "Google",
    "ro.product.model": "Pixel 8",
    "ro.build.fingerprint": "google/shiba/shiba:16/BP2A.250605/1:user/release-keys",
    "ro.serialno": "3B0FAKE",
    "ro.soc.model": "Tensor G3",
}


@pytest.fixture(scope="session")
def model() -> Path:
    """A token classifier of 8 ids, 10 classes, static int8; `make_tiny.py` wrote it and what it answers."""
    return HERE / "tiny_static.tflite"


@pytest.fixture(scope="session")
def job(model: Path) -> Job:
    golden = json.loads((HERE / "tiny_static.json").read_text())
    return Job(model, "length_8", golden["inputs"], expected=golden["outputs"])


@pytest.fixture(scope="session")
def adb_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Google's adb program with keys and a server of its own, which leaves the user's alone."""
    adbutils = pytest.importorskip("adbutils", reason="needs the extra `android`")
    home = tmp_path_factory.mktemp("adb")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {
        "ADB": adbutils.adb_path(), "HOME": str(home), "TMPDIR": str(home), "ANDROID_ADB_SERVER_PORT": str(port),
        "EDGEDISTILL_CONFIG": str(home / "config.toml"), "ADB_MDNS": "0", "ADB_LIBUSB": "0",
    }  # fmt: skip
    (home / "config.toml").touch()
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    yield own
    subprocess.run([own["ADB"], "kill-server"], capture_output=True, timeout=20, check=False)
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def phone(adb_home: dict[str, str], tmp_path: Path) -> Iterator[FakeAdbd]:
    root, programs = tmp_path / "root", tmp_path / "bin"
    root.mkdir()
    programs.mkdir()
    put(programs / "getprop", "case $1 in " + " ".join(f"{k}) echo '{v}';;" for k, v in GETPROP.items()) + " esac")
    put(programs / "dumpsys", f"cat {root}/$1.txt")
    put(programs / "settings", "echo 0")
    (root / "battery.txt").write_text(BATTERY)
    (root / "thermalservice.txt").write_text(THERMAL)
    daemon = FakeAdbd(root, programs)
    yield daemon
    subprocess.run([adb_home["ADB"], "disconnect", daemon.serial], capture_output=True, timeout=20, check=False)
    daemon.close()
