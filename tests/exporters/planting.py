"""What the faults that are planted into files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgedistill.quant import FrozenStudent

UP, QUERY, KEY = ("layers.0.up.weight", "layers.0.query.weight", "layers.0.key.weight")


KERNEL, EVEN = "blocks.1.depthwise.conv.weight", "blocks.0.depthwise.conv.weight"


Change = Callable[[FrozenStudent, Path], None]


def replaced(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
