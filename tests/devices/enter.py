"""The first process of a private namespace: sets up its network, its file systems and who runs foreign programs, then
becomes the device's daemon. `python enter.py ROOT QEMU COMMAND…`; an empty ROOT stays in this machine's tree.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
# An ELF file of 64 bits for AArch64, as linux/Documentation/admin-guide/binfmt-misc.rst describes its fields.
MAGIC = rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


def mount(source: str, target: Path, kind: str, flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    target.mkdir(parents=True, exist_ok=True)
    if libc.mount(source.encode(), str(target).encode(), kind.encode(), flags, b"") != 0:
        raise OSError(ctypes.get_errno(), f"mount {kind} on {target}: {os.strerror(ctypes.get_errno())}")


def main(root: str, qemu: str, *command: str) -> None:
    if os.environ.get("ED_WAIT"):
        sys.stdin.readline()  # until our user ids are known outside
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
    if root:
        tree = Path(root)
        mount("none", Path("/"), "", MS_REC | MS_PRIVATE)
        mount("proc", tree / "proc", "proc")
        for name in ("dev", "sys"):
            mount(f"/{name}", tree / name, "", MS_BIND | MS_REC)
        for pair in os.environ.get("ED_BINDS", "").split():
            source, _, target = pair.partition(":")
            mount(source, tree / target, "", MS_BIND | MS_REC)
        for name in ("data/local/tmp", "tmp"):
            mount("tmpfs", tree / name, "tmpfs")
        if qemu:
            mount("binfmt_misc", tree / "tmp" / "binfmt", "binfmt_misc")
            line = b":aarch64:M::" + MAGIC + b":" + MASK + b":" + qemu.encode() + b":OCF"
            (tree / "tmp" / "binfmt" / "register").write_bytes(line)
        os.chroot(tree)
        os.chdir("/")
    os.execvpe(command[0], command, os.environ)


if __name__ == "__main__":
    main(*sys.argv[1:])
