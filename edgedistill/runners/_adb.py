"""The plain `adb` program: where it is, which devices it sees, and what its words mean."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

from edgedistill import catalog
from edgedistill.errors import InfrastructureError, MissingDependency, SpecError
from edgedistill.runners._transport import SHELL_S, run_quietly

CONNECT_S = 15.0
PASSING, PASSING_S = ("authorizing", "connecting"), 5.0  # states that end by themselves, or with an answer on the phone
_NETWORK = re.compile(r"^(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}$")
# What adb says, what it means and what to do; the first that fits is told.
MEANINGS = (
    ("No space left", "its storage is full. Free some space under /data and run the same command again"),
    ("Read-only file system", "its storage is read-only there. Is it a phone in recovery? Restart it"),
    ("authorizing", "it waits for an answer. Unlock it, accept 'Allow USB debugging', and run this again"),
    ("unauthorized", "it has not allowed this computer. Unlock it, accept 'Allow USB debugging', and run this again"),
    ("failed to authenticate", "it has not allowed this computer. Unlock it, accept 'Allow USB debugging', and retry"),
    ("no permissions", "this user may not open the USB device. Install Debian's `android-sdk-platform-tools-common` "
     "(udev rules), or add yourself to the group plugdev"),
    ("offline", "it is offline. Unplug and plug it, or `adb reconnect`, and run this again"),
    ("recovery", "it is in recovery mode. Restart it"),
    ("sideload", "it is in sideload mode. Restart it"),
    ("bootloader", "it is in its bootloader. Restart it"),
    ("more than one device", "several devices are connected: name one with --on adb:SERIAL"),
    ("not found", "it is not connected. `adb devices` lists what is"),
    ("no devices", "no device is connected. Plug one in and allow USB debugging (Settings, Developer options)"),
    ("Connection refused", "nothing listens there. On the phone: Developer options, Wireless debugging; or `adb tcpip "
     "5555` over a cable first"),
    ("failed to connect", "it does not answer there. Check the address and that Wireless debugging is on"),
    ("cannot connect to daemon", "the adb server does not start. Try `adb kill-server`, then `adb start-server`"),
    ("does not exist", "the file is not there: the program on the device ended before it was written"),
    ("failed to stat", "the file is not there: the program on the device ended before it was written"),
)  # fmt: skip
AWAY = ("offline", "not found", "no devices", "Connection refused", "failed to connect")


def find_adb() -> str:
    """The adb program: `adb` of the user's config.toml, $ADB, PATH, $ANDROID_HOME (or $ANDROID_SDK_ROOT), the adbutils
    package.

    Raises:
        SpecError: the file or the variable names no program.
        MissingDependency: there is none.
    """
    for where, named in (("config.toml: adb", catalog.config().adb), ("$ADB", os.environ.get("ADB", ""))):
        if named:
            found = shutil.which(str(Path(named).expanduser()))
            if not found:
                raise SpecError(f"{where} = {named!r} is no program. Give the path of adb, or leave it out.")
            return found
    if found := shutil.which("adb"):
        return found
    for variable in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        if (home := os.environ.get(variable)) and (found := shutil.which(str(Path(home, "platform-tools", "adb")))):
            return found
    spec = find_spec("adbutils")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if found := shutil.which(str(Path(folder, "binaries", "adb"))):
            return found
    raise MissingDependency(
        "no adb program was found in config.toml, $ADB, PATH, $ANDROID_HOME/platform-tools or the package adbutils. "
        "Install one: pip install 'edgedistill[android]', or `apt install adb`."
    )


class Adb:
    """A device by its serial number, or `HOST:PORT` for one on the network; empty: the only one there is."""

    runner = "adb"

    def __init__(self, serial: str) -> None:
        if serial and not re.fullmatch(r"[\w.:%\[\]@+-]{1,128}", serial):
            raise SpecError(f"--on adb:{serial}: not a serial number. `adb devices` lists them.")
        self._adb = find_adb()
        self._serial = serial

    @property
    def name(self) -> str:
        """As the user writes it."""
        return f"adb:{self._serial}" if self._serial else "adb"

    def connect(self) -> None:
        """Find the device, over the network if need be, and see that it takes commands.

        Raises:
            SpecError: none is named, and there are several.
            InfrastructureError: it is not there, or does not take commands.
        """
        known = self._devices()
        if not self._serial:
            if len(known) > 1:
                names = ", ".join(f"adb:{serial}" for serial in sorted(known))
                raise SpecError(f"--on adb: several devices are connected. Name one: {names}.")
            if not known:
                raise InfrastructureError(f"adb: {self.explain('no devices')}")
            self._serial = next(iter(known))
        told = ""
        if known.get(self._serial) != "device" and _NETWORK.match(self._serial):
            told = self._call("connect", self._serial)  # ends 0 whatever happened
            known = self._devices()
        state = known.get(self._serial)
        deadline = time.monotonic() + PASSING_S
        while state in PASSING and time.monotonic() < deadline:
            time.sleep(0.1)
            state = self._devices().get(self._serial)
        if state is None:
            others = ", ".join(sorted(known)) or "none"
            raise InfrastructureError(f"{self.name}: {self.explain(told or 'not found')} (connected now: {others})")
        if state != "device":
            raise InfrastructureError(f"{self.name}: {self.explain(state)} (adb says: {state})")

    def shell(self, script: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """adb hands the script to the device's `sh -c` as one text."""
        return run_quietly([self._adb, "-s", self._serial, "shell", "-T", script], timeout_s)

    def push(self, local: Path, remote: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """`adb push`."""
        return run_quietly([self._adb, "-s", self._serial, "push", str(local.resolve()), remote], timeout_s)

    def pull(self, remote: str, local: Path, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """`adb pull`."""
        return run_quietly([self._adb, "-s", self._serial, "pull", remote, str(local)], timeout_s)

    def explain(self, output: str) -> str:
        """What adb's words mean; words that are not known are told as they are."""
        for words, meaning in MEANINGS:
            if words.lower() in output.lower():
                return meaning
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        told = f" adb's last line: {lines[-1][:200]}" if lines else ""
        return f"the device was lost in the middle of a command. Connect it again and run the same command.{told}"

    def lost(self, output: str) -> bool:
        """Words that are not known, and those of a device that is away for now."""
        meant = next((words for words, _ in MEANINGS if words.lower() in output.lower()), "")
        return meant in ("", *AWAY)

    def hang_up(self) -> None:
        """Disconnect a device on the network; one on a cable comes back by itself."""
        if _NETWORK.match(self._serial) and self._devices().get(self._serial, "device") != "device":
            self._call("disconnect", self._serial)

    def close(self) -> None:
        """Nothing: the adb server is the user's, and stays."""

    def _devices(self) -> dict[str, str]:
        """State by serial: device, offline, unauthorized, no permissions, recovery, ..."""
        lines = self._call("devices").splitlines()
        listed = [line for line in lines[1:] if "\t" in line] if lines else []
        return {line.split("\t")[0]: line.split("\t")[1].strip() for line in listed}

    def _call(self, *words: str) -> str:
        try:
            done = run_quietly([self._adb, *words], CONNECT_S + SHELL_S)
        except subprocess.TimeoutExpired:
            raise InfrastructureError(f"{self.name}: adb {words[0]} does not end. Try `adb kill-server`.") from None
        except OSError as error:
            raise InfrastructureError(f"{self.name}: cannot start {self._adb}: {error.strerror}") from None
        text = done.stdout.decode("utf-8", "replace")
        if done.returncode:
            raise InfrastructureError(f"{self.name}: {self.explain(done.stderr.decode('utf-8', 'replace') + text)}")
        # the server's start is told on stdout, too
        return "\n".join(line for line in text.splitlines() if not line.startswith("* "))
