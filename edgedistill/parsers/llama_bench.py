"""`llama-bench` of llama.cpp: `-o json`, `jsonl`, `csv`, `md` and `sql`; only the first two keep samples.

Keys come and go with versions: what is not known is skipped, what was renamed is read by either name.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgedistill.errors import DataError
from edgedistill.parsers._text import NUMBER, as_number, lines_of, load_json, number
from edgedistill.specs import Spec

# between them ±, in whatever a console's code page made of it
_SPEED = re.compile(rf"^({NUMBER})(?:\s*[^\d\s.,]{{1,4}}\s*({NUMBER}))?$")
_TEST = re.compile(r"^(?:pp\s?(\d{1,9}))?\s*\+?\s*(?:tg\s?(\d{1,9}))?(?:\s*@\s*d(\d{1,9}))?$")


class LlamaTest(Spec):
    """One test: a prompt of `n_prompt` tokens, then `n_gen` tokens generated, after `n_depth` tokens of context.

    Samples are whole tests, in ns; empty where the output keeps none.
    """

    n_prompt: int
    n_gen: int
    n_depth: int = 0
    tokens_per_s: float
    std_tokens_per_s: float | None = None
    samples_ns: tuple[int, ...] = ()
    threads: int | None = None
    backends: str = ""
    model: str = ""
    build: str = ""
    cpu: str = ""

    @property
    def kind(self) -> str:
        """`prefill`, `decode`, or `both` where one test does the one after the other."""
        return "both" if self.n_prompt and self.n_gen else "prefill" if self.n_prompt else "decode"


def parse(text: str) -> tuple[LlamaTest, ...]:
    """All tests; lines that a backend prints before the results are skipped.

    Raises:
        DataError: no test, or one that was cut off.
    """
    lines = lines_of(text)
    whole = "\n".join(lines)
    if re.search(r"(?m)^\s*INSERT INTO ", whole):
        found = _from_sql(whole)
    elif any(line.lstrip().startswith("|") for line in lines):
        found = _from_markdown(lines)
    elif (start := re.search(r"(?m)^\s*\[\s*(?:$|\{|\])", whole)) is not None:
        found = _records(load_json(_balanced(whole[start.start() :])))
    elif any(line.startswith("{") for line in lines):
        found = [_record(load_json(line)) for line in lines if line.startswith("{")]
    else:
        found = _from_csv(lines)
    if not found:
        raise DataError(f"no test of llama-bench in it; its last line is {lines[-1].strip()[:120]!r}")
    return tuple(found)


def _balanced(text: str) -> str:
    """The array without what was printed after it."""
    end = text.rfind("]")
    return text[: end + 1] if end >= 0 else text


def _records(value: Any) -> list[LlamaTest]:
    if not isinstance(value, list):
        raise DataError("not a list of tests")
    return [_record(item) for item in value]


def _record(value: Any) -> LlamaTest:
    if not isinstance(value, dict):
        raise DataError(f"a test that is no object: {str(value)[:60]!r}")
    samples = value.get("samples_ns")
    if samples is not None and not isinstance(samples, list):
        raise DataError("samples_ns is no list")
    return _made(value, tuple(int(as_number(item, "samples_ns")) for item in samples or ()))


def _made(value: Mapping[str, Any], samples: tuple[int, ...] = ()) -> LlamaTest:
    """A test out of named values, texts or numbers."""
    counts = {key: _count(value, key) for key in ("n_prompt", "n_gen", "n_depth")}
    if not counts["n_prompt"] and not counts["n_gen"]:
        raise DataError("a test of no tokens: neither n_prompt nor n_gen is above zero")
    speed = value.get("avg_ts")
    tokens = counts["n_prompt"] + counts["n_gen"]
    if speed is None and "avg_ns" in value and (spent := as_number(value["avg_ns"], "avg_ns")) > 0:
        speed = tokens * 1e9 / spent
    if speed is None or (told := as_number(speed, "avg_ts")) <= 0:
        raise DataError("a test without a speed above zero (avg_ts or avg_ns): it did not run")
    if any(item <= 0 for item in samples):
        raise DataError("samples_ns holds a time that is not above zero")
    std = value.get("stddev_ts")
    threads = _count(value, "n_threads")
    return LlamaTest(
        **counts,
        tokens_per_s=told,
        std_tokens_per_s=None if std is None else abs(as_number(std, "stddev_ts")),
        samples_ns=samples,
        threads=threads or None,
        backends=str(value.get("backends") or value.get("backend") or ""),
        model=str(value.get("model_type") or ""),
        build=f"{value.get('build_commit', '')} ({value.get('build_number', '')})".replace(" ()", ""),
        cpu=str(value.get("cpu_info") or ""),
    )


def _count(value: Mapping[str, Any], key: str) -> int:
    told = as_number(value.get(key, 0) or 0, key)
    if told < 0 or told != int(told) or told > 2**53:
        raise DataError(f"{key}: {told:g} is no count")
    return int(told)


def _from_csv(lines: Sequence[str]) -> list[LlamaTest]:
    start = next((n for n, line in enumerate(lines) if "n_prompt" in line and "avg_ts" in line), None)
    if start is None:
        return []
    names = next(csv.reader([lines[start]]))
    found = []
    for line in lines[start + 1 :]:
        cells = next(csv.reader([line]), [])
        if len(cells) == len(names):
            found.append(_made(dict(zip(names, cells, strict=True))))
        elif line.startswith('"') or len(cells) > len(names) / 2:
            raise DataError(f"a line of {len(cells)} values under {len(names)} columns: it was cut off")
    return found


def _from_sql(text: str) -> list[LlamaTest]:
    found = []
    for statement in re.finditer(r"INSERT INTO \S+ \(([^)]*)\) VALUES \((.*)\);?\s*$", text, re.M):
        names = [name.strip() for name in statement[1].split(",")]
        cells = next(csv.reader([statement[2]], quotechar="'", skipinitialspace=True), [])
        if len(cells) != len(names):
            raise DataError(f"a line of {len(cells)} values for {len(names)} columns")
        found.append(_made(dict(zip(names, cells, strict=True))))
    if (begun := len(re.findall(r"^\s*INSERT INTO ", text, re.M))) != len(found):
        raise DataError(f"{begun} statements are begun and {len(found)} ended: it was cut off")
    return found


def _from_markdown(lines: Sequence[str]) -> list[LlamaTest]:
    names: list[str] = []
    found = []
    built = next((line.removeprefix("build:").strip() for line in lines if line.startswith("build:")), "")
    for line in lines:
        if not line.lstrip().startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "test" in cells and "t/s" in cells:
            names = cells
        elif names and not set("".join(cells)) <= set("-: "):
            if len(cells) != len(names):
                raise DataError(f"a row of {len(cells)} cells under {len(names)} columns: it was cut off")
            found.append(_row(dict(zip(names, cells, strict=True)), built))
    return found


def _row(cells: Mapping[str, str], built: str) -> LlamaTest:
    test, speed = _TEST.match(cells["test"]), _SPEED.match(cells["t/s"])
    if not test or not speed or not (test[1] or test[2]):
        raise DataError(f"test {cells['test'][:30]!r} with {cells['t/s'][:30]!r} t/s is no result")
    threads = cells.get("threads", "")
    return _made(
        {
            "n_prompt": test[1] or 0,
            "n_gen": test[2] or 0,
            "n_depth": test[3] or 0,
            "avg_ts": number(speed[1], "t/s"),
            "stddev_ts": number(speed[2], "t/s") if speed[2] else None,
            "n_threads": threads if threads.isdigit() else 0,
            "backends": cells.get("backend", ""),
            "model_type": cells.get("model", ""),
            "build_commit": built,
        }
    )
