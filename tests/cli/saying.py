"""Commands asked in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[..., tuple[int, str, str]]


def document(say: Say, *args: object, store: Path | None = None) -> dict[str, Any]:
    code, out, err = say("plan", *args, "--json", store=store)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found
