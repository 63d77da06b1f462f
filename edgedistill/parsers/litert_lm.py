"""What `litert_lm_main` prints after a conversation: times of prefill and decode, and the memory it was sampled at."""

from __future__ import annotations

import re

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, lines_of, number, search, whole
from edgedistill.specs import Spec

_TURN = re.compile(r"(Prefill|Decode) Turn (\d+): Processed (\d+) tokens in (.+?) duration")
_PART = re.compile(rf"({NUMBER})(h|ms|us|µs|ns|m|s)")
SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


class Turn(Spec):
    """Tokens that one turn took, or made, and how long."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Speed of the turn."""
        return self.tokens / self.seconds


class Conversation(Spec):
    """One run. Memory is the largest and the middle resident size that was sampled, in MB; None: not told."""

    prefill_turns: tuple[Turn, ...]
    decode_turns: tuple[Turn, ...]
    first_token_ms: float | None = None
    init_ms: float | None = None
    peak_rss_mb: float | None = None
    median_rss_mb: float | None = None
    exit_code: int | None = None


def parse(text: str) -> Conversation:
    """A run's whole console.

    Raises:
        DataError: no turn was finished, or the program says that it failed.
    """
    lines = lines_of(text)
    turns: dict[str, list[Turn]] = {"Prefill": [], "Decode": []}
    for line in lines:
        if found := _TURN.search(line):
            seconds = duration_s(found[4])
            if seconds <= 0:
                raise DataError(f"a turn of no time: {line.strip()[:100]!r}")
            turns[found[1]].append(Turn(tokens=whole(found[3], "tokens", 1), seconds=seconds))
    code = search(lines, r"EXIT_CODE=(\d{1,3})\s*$")
    if code and int(code[1]):
        raise DataError(f"the run ended with {code[1]}; its last line before: {_before(lines, code.string)!r}")
    if not turns["Prefill"] and not turns["Decode"]:
        raise DataError(f"no finished turn of a conversation; its last line is {lines[-1].strip()[:120]!r}")
    first = search(lines, rf"Time to first token:\s*({NUMBER})\s*(m?s)\b")
    total = search(lines, rf"(?:Init Total|Total init time):\s*({NUMBER})\s*ms")
    resident = sorted(
        int(found[1]) * 1024 / 1e6 for line in lines if (found := re.match(r"\s*VmRSS:\s+(\d{1,12}) kB", line))
    )
    return Conversation(
        prefill_turns=tuple(turns["Prefill"]),
        decode_turns=tuple(turns["Decode"]),
        first_token_ms=number(first[1]) * (1e3 if first[2] == "s" else 1.0) if first else None,
        init_ms=number(total[1]) if total else None,
        peak_rss_mb=resident[-1] if resident else None,
        median_rss_mb=resident[len(resident) // 2] if resident else None,
        exit_code=int(code[1]) if code else None,
    )


def duration_s(text: str) -> float:
    """A duration as absl prints it: `1.865528565s`, `1m2.5s`, `135.376us`.

    Raises:
        DataError: it is none.
    """
    cleaned = text.strip()
    parts = _PART.findall(cleaned)
    if not parts or "".join(value + unit for value, unit in parts) != cleaned:
        raise DataError(f"{cleaned[:40]!r} is no duration")
    return sum(number(value) * SECONDS[unit] for value, unit in parts)


def _before(lines: list[str], last: str) -> str:
    told = [line.strip() for line in lines if line.strip() and line != last]
    return told[-1][:120] if told else ""
