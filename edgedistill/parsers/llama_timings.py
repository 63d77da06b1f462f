"""The timings that llama.cpp's programs print at their end, of every version: `llama_print_timings`, `llama_perf_…`,
`common_perf_print`, a server's `print_timing`, and the short line of `llama-cli`. Speeds are of that one run alone.
"""

from __future__ import annotations

import re

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, lines_of, number, whole
from edgedistill.specs import Spec

_TIME = re.compile(
    rf"(?:^|[:|\s])\s*(load|sample|sampling|prompt eval|eval|total) time\s*=\s*({NUMBER})\s*ms"
    rf"(?:\s*/\s*(\d{{1,9}})\s*(?:tokens?|runs?))?"
)
_SHORT = re.compile(rf"\[ Prompt: ({NUMBER}) t/s \| Generation: ({NUMBER}) t/s \]")


class LlamaTimings(Spec):
    """One run; times in ms. None: not told, or nothing was computed. A decode's count leaves out the first token, which
    the prompt's evaluation made.
    """

    load_ms: float | None = None
    prompt_tokens: int | None = None
    prompt_ms: float | None = None
    decode_tokens: int | None = None
    decode_ms: float | None = None
    total_ms: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None


def parse(text: str) -> LlamaTimings:
    """A program's output, or the part with the timings.

    Raises:
        DataError: no timings, those of several runs, or some that were cut off.
    """
    lines = lines_of(text)
    told: dict[str, tuple[float, int | None]] = {}
    for line in lines:
        if not (found := _TIME.search(line)):
            if re.search(r"\beval time\s*=", line):
                raise DataError(f"a timing that was cut off: {line.strip()[:100]!r}")
            continue
        if found[1] in told:
            raise DataError(f"{found[1]} time stands there twice: give the output of one run")
        told[found[1]] = (number(found[2], found[1]), whole(found[3], found[1]) if found[3] else None)
    if "eval" in told or "prompt eval" in told:
        return _whole(told)
    short = [found for line in lines if (found := _SHORT.search(line))]
    if len(short) != 1:
        what = f"{len(short)} answers" if short else f"no 'eval time =' line; its last line is {lines[-1][:80]!r}"
        raise DataError(f"{what}: the timings of one run are needed")
    return LlamaTimings(
        prefill_tokens_per_s=number(short[0][1]) or None, decode_tokens_per_s=number(short[0][2]) or None
    )


def _whole(told: dict[str, tuple[float, int | None]]) -> LlamaTimings:
    spent = {name: ms for name, (ms, _) in told.items()}
    if min(spent.values()) < 0:
        raise DataError("a time below zero")
    counts = {name: count for name, (_, count) in told.items()}
    if "eval" not in told and "total" not in told:
        raise DataError("'prompt eval time' without what follows it: the output was cut off")
    return LlamaTimings(
        load_ms=spent.get("load"),
        prompt_tokens=counts.get("prompt eval"),
        prompt_ms=spent.get("prompt eval"),
        decode_tokens=counts.get("eval"),
        decode_ms=spent.get("eval"),
        total_ms=spent.get("total"),
        prefill_tokens_per_s=_speed(*told.get("prompt eval", (0.0, None))),
        decode_tokens_per_s=_speed(*told.get("eval", (0.0, None))),
    )


def _speed(ms: float, count: int | None) -> float | None:
    """Tokens per second; None where nothing was computed, as in `0.00 ms / 1 runs (… inf tokens per second)`."""
    return count * 1e3 / ms if count and ms > 0 else None
