"""An adb daemon in a thread: the real wire protocol on a local port, commands run by this machine's `sh`, and faults.

Written from the protocol's description in AOSP (packages/modules/adb: protocol.txt, SYNC.TXT, shell_protocol.h).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CNXN, AUTH, OPEN, OKAY, CLSE, WRTE = (int.from_bytes(name, "little") for name in
                                      (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE"))  # fmt: skip
STDIN, STDOUT, STDERR, EXIT = range(4)
VERSION, LARGEST = 0x01000001, 256 * 1024


@dataclass
class Faults:
    """What goes wrong; each may be changed while the daemon runs."""

    unauthorized: bool = False
    disk_full: bool = False
    damage: bool = False  # a pushed file loses its last byte
    slow_s: float = 0.0  # before every command
    drop_on: str = ""  # the line breaks in the middle of a command that holds this text
    drop_after_s: float = 0.05
    drop_push: bool = False
    silent_on: str = ""  # a command that holds this text never answers
    lie_on: str = ""  # the process is killed half way, and its exit code is told as 0
    gone: bool = False  # after a drop nothing listens any more
    times: int = 1 << 30  # how often the line drops
    lies: int = 1 << 30  # how often an exit code lies
    detached: bool = False  # a lost line does not wait for what runs on the device
    on_drop: Callable[[], object] = bool  # done when the line drops


@dataclass
class FakeAdbd:
    """A device whose storage is `root`; `bin` stands before PATH and may hold a `getprop` or a `dumpsys`."""

    root: Path
    bin: Path
    faults: Faults = field(default_factory=Faults)
    commands: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._lines: set[Line] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                if self.faults.gone:
                    connection.close()
                    continue
                line = Line(self, connection)
                self._lines.add(line)
                threading.Thread(target=line.serve, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for line in self._lines:
            line.drop()


class Line:
    """One connection of an adb server."""

    def __init__(self, daemon: FakeAdbd, connection: socket.socket) -> None:
        self.daemon, self.connection = daemon, connection
        self.streams: dict[int, Stream] = {}
        self.write_lock = threading.Lock()

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with self.write_lock, contextlib.suppress(OSError):
            self.connection.sendall(head + data)

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.connection.recv(count - len(data))
            if not piece:
                raise ConnectionError
            data += piece
        return data

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                command, first, second, length, _, _ = struct.unpack("<6I", self._exactly(24))
                self._take(command, first, second, self._exactly(length))
        for stream in self.streams.values():
            stream.lost()

    def _take(self, command: int, first: int, second: int, data: bytes) -> None:
        if command in (CNXN, AUTH):
            if self.daemon.faults.unauthorized:
                self.send(AUTH, 1, 0, os.urandom(20))
            else:
                self.send(CNXN, VERSION, LARGEST, b"device::ro.product.model=Fake;features=shell_v2,cmd")
        elif command == OPEN:
            stream = Stream(self, first, len(self.streams) + 1)
            self.streams[stream.mine] = stream
            threading.Thread(target=stream.run, args=(data.rstrip(b"\0").decode(),), daemon=True).start()
        elif (stream := self.streams.get(second)) is not None:
            stream.take(command, data)


class Stream:
    """One service: a shell or file transfer."""

    def __init__(self, line: Line, theirs: int, mine: int) -> None:
        self.line, self.theirs, self.mine = line, theirs, mine
        self.faults = line.daemon.faults
        self.ready, self.came = threading.Semaphore(0), threading.Condition()
        self.data, self.closed = b"", False

    def take(self, command: int, data: bytes) -> None:
        if command == OKAY:
            self.ready.release()
            return
        with self.came:
            if command == WRTE:
                self.data += data
                self.line.send(OKAY, self.mine, self.theirs)
            else:
                self.closed = True
            self.came.notify_all()

    def lost(self) -> None:
        with self.came:
            self.closed = True
            self.came.notify_all()
        self.ready.release()

    def read(self, count: int) -> bytes:
        with self.came:
            self.came.wait_for(lambda: len(self.data) >= count or self.closed)
            if len(self.data) < count:
                raise ConnectionError
            taken, self.data = self.data[:count], self.data[count:]
            return taken

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), LARGEST):
            self.line.send(WRTE, self.mine, self.theirs, data[start : start + LARGEST])
            self.ready.acquire()

    def run(self, service: str) -> None:
        self.line.send(OKAY, self.mine, self.theirs)
        with contextlib.suppress(ConnectionError):
            if service.startswith("shell"):
                self._shell(service.partition(":")[2])
            elif service.startswith("sync:"):
                self._sync()
        self.line.send(CLSE, self.mine, self.theirs)

    def _shell(self, script: str) -> None:
        self.line.daemon.commands.append(script)
        time.sleep(self.faults.slow_s)
        environment = {
            **os.environ,
            "PATH": f"{self.line.daemon.bin}:{os.environ['PATH']}",
            "TMPDIR": str(self.line.daemon.root),
        }
        # a session of its own, as on a device: losing the line does not end what runs there
        process = subprocess.Popen(
            ["sh", "-c", script],
            cwd=self.line.daemon.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        lying = bool(self.faults.lie_on) and self.faults.lie_on in script and self.faults.lies > 0
        self.faults.lies -= lying
        if self.faults.silent_on and self.faults.silent_on in script:
            with contextlib.suppress(ConnectionError):
                self.read(1 << 30)
            process.communicate()
            return
        if self.faults.drop_on and self.faults.drop_on in script and self.faults.times > 0:
            self.faults.times -= 1
            self.write(bytes([STDOUT]) + struct.pack("<I", 5) + b"\nhalf")
            time.sleep(self.faults.drop_after_s)
            self.faults.on_drop()
            self.line.drop()
            process.stdout.close() if process.stdout else None
            process.stderr.close() if process.stderr else None
            ended = threading.Thread(target=process.wait, daemon=True)
            ended.start()
            if not self.faults.detached:
                ended.join()
            return
        if lying:
            time.sleep(self.faults.drop_after_s)
            os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        if lying:
            stdout = stdout[: len(stdout) // 2]
        for kind, text in ((STDERR, stderr), (STDOUT, stdout)):
            for start in range(0, len(text), LARGEST - 8):
                piece = text[start : start + LARGEST - 8]
                self.write(bytes([kind]) + struct.pack("<I", len(piece)) + piece)
        code = 0 if lying else process.returncode if process.returncode >= 0 else 128 - process.returncode
        self.write(bytes([EXIT]) + struct.pack("<I", 1) + bytes([code]))

    def _sync(self) -> None:
        while True:
            name, length = struct.unpack("<4sI", self.read(8))
            if name == b"QUIT":
                return
            path = self.read(length).decode()
            if name == b"STAT":
                seen = Path(path).stat() if Path(path).exists() else None
                told = (seen.st_mode, seen.st_size, int(seen.st_mtime)) if seen else (0, 0, 0)
                self.write(struct.pack("<4s3I", b"STAT", *told))
            elif name == b"SEND":
                self._receive(Path(path.rpartition(",")[0]))
            elif name == b"RECV":
                self._give(Path(path))

    def _receive(self, path: Path) -> None:
        content = b""
        while True:
            name, length = struct.unpack("<4sI", self.read(8))
            if name == b"DONE":
                break
            content += self.read(length)
            if self.faults.drop_push and self.faults.times > 0:
                self.faults.times -= 1
                self.line.drop()
                raise ConnectionError
        if self.faults.disk_full:
            self._fail("remote write failed: No space left on device")
            return
        path.write_bytes(content[:-1] if self.faults.damage else content)
        self.write(struct.pack("<4sI", b"OKAY", 0))

    def _give(self, path: Path) -> None:
        if not path.is_file():
            self._fail(f"open failed: No such file or directory: {path}")
            return
        content = path.read_bytes()
        for start in range(0, len(content), 65536):
            piece = content[start : start + 65536]
            self.write(struct.pack("<4sI", b"DATA", len(piece)) + piece)
        self.write(struct.pack("<4sI", b"DONE", 0))

    def _fail(self, reason: str) -> None:
        self.write(struct.pack("<4sI", b"FAIL", len(reason)) + reason.encode())
