"""Damage that a file may have suffered: cut off, a bit that flipped, four bytes of something else."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

NUMBERS = (b"\xff" * 4, b"\xff\xff\xff\x7f", bytes(4))  # that readers take for sizes and places


def damaged(source: bytes, chance: random.Random, turn: int, at: int) -> bytes:
    """The bytes with one kind of damage at a place, the kinds in turns."""
    data = bytearray(source)
    if turn % 3 == 0:
        del data[at:]
    elif turn % 3 == 1:
        data[at] ^= 1 << chance.randrange(8)
    else:
        data[at : at + 4] = chance.choice([*NUMBERS, chance.randbytes(4)])
    return bytes(data)


def told(code: str, *arguments: object, timeout_s: float) -> str:
    """What the code prints, run in a process of its own that finds this module; it has to end well."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    here = Path(__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=here)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
