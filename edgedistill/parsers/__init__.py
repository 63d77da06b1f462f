"""Outputs of other tools as values: benchmarks, phones' services, meters. One file per tool, each with `parse`.

A parser returns a value or raises DataError with what is wrong; it never guesses, and no input makes it crash. What a
tool does not tell is None. `read` finds out by itself which tool wrote a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgedistill.errors import DataError, SpecError, did_you_mean
from edgedistill.parsers import (
    app_run,
    batterystats,
    benchmark_model,
    devicectl,
    dumpsys_battery,
    dumpsys_meminfo,
    dumpsys_thermal,
    executorch,
    litert_benchmark,
    litert_lm,
    llama_bench,
    llama_timings,
    mlperf,
    odpm,
    op_profile,
    ort_perf_test,
    perfetto,
    pmic,
    powermetrics,
    protobuf,
    tegrastats,
    trtexec,
    xctest,
)
from edgedistill.parsers._text import LONGEST

# What a file of each kind holds and no other; the first that fits. The patterns are searched in the whole text.
KINDS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("devicectl", r'"commandType"\s*:\s*"devicectl', devicectl.parse),
    ("benchmark_model", r"Inference timings in us|\bcount=\d+ .*(?:curr|avg)=|footprint.*\(MB\)|model file size \(MB\)"
     r"|Benchmarking failed", benchmark_model.parse),
    ("litert_benchmark", r'"latency"\s*:\s*\{|= BENCHMARK RESULTS =|^ ?BENCHMARK RESULTS|^Inference \(avg\):',
     litert_benchmark.parse),
    ("executorch", r'"benchmarkModel"\s*:\s*\{', executorch.parse),
    ("app_run", r'"metrics"\s*:\s*\{', app_run.parse),
    ("mlperf", r"^MLPerf Results Summary|^Scenario\s*:", mlperf.parse),
    ("litert_lm", r"(?:Prefill|Decode) Turn \d+:|Time to first token:|^EXIT_CODE=", litert_lm.parse),
    ("llama_timings", r"(?:^|[_ |])(?:prompt )?eval time =|\[ Prompt: .* t/s \|", llama_timings.parse),
    ("llama_bench", r'"?n_gen"?|\|\s*t/s\s*\|', llama_bench.parse),
    ("tegrastats", r"\bRAM \d+/\d+(?:MB|kB)\b.*\bCPU \[", tegrastats.parse),
    ("pmic", r"_[AV] (?:current|volt)\(\d+\)=", pmic.parse),
    ("op_profile", r"node type, first, avg_ms|= Run Order =", op_profile.parse),
    ("dumpsys_meminfo", r"\bMEMINFO in pid \d+|^\s*TOTAL PSS:\s+\d+|^No process found for",
     dumpsys_meminfo.parse),
    ("ort_perf_test", r"^\s*(?:Average inference time cost|Session creation time cost|P50 Latency(?::| is))",
     ort_perf_test.parse),
    ("trtexec", r"GPU Compute(?: Time)?: min = |&&&& (?:RUNNING|PASSED|FAILED) TensorRT\.trtexec", trtexec.parse),
    ("odpm", r"^(?:CH\d+)?\(T=\d+\)\[", odpm.parse),
    ("dumpsys_thermal", r"Temperature\{mValue|^Thermal Status:", dumpsys_thermal.parse),
    ("dumpsys_battery", r"Battery Service state|^\s+(?:AC|USB) powered:", dumpsys_battery.parse),
    ("batterystats", r"^\d+,\d*,(?:[ilu],|h[,:\d])|^\d+,h,|^\s*Estimated power use \(mAh\):", batterystats.parse),
    ("xctest", r" measured \[", xctest.parse),
    ("powermetrics", r"^(?:CPU|GPU|ANE|Combined|Package|Intel energy model).*[Pp]ower|<key>combined_power</key>",
     powermetrics.parse),
)  # fmt: skip

BINARY: tuple[tuple[str, Callable[[bytes], Any]], ...] = (
    ("benchmark_result", protobuf.parse),
    ("op_profile", protobuf.parse_profile),
    ("perfetto", perfetto.parse),
)


def kinds() -> list[str]:
    """The names of all parsers of text, sorted; binary files of benchmark_model are found by `read`."""
    return sorted(name for name, _, _ in KINDS)


def recognize(text: str) -> str:
    """The name of the tool that wrote it; empty when it is none of those known."""
    for name, pattern, _ in KINDS:
        if re.search(pattern, text, re.M):
            return name
    return ""


def read(path: Path, kind: str = "") -> tuple[str, Any]:
    """The tool's name and the value of a recorded output; `kind` is for a file that does not say what it is.

    Raises:
        SpecError: no such file or kind.
        DataError: it is damaged, cut off, or of no known tool.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        return parse(data, kind)
    except DataError as error:
        raise DataError(f"{path}: {error}.") from None


def parse(data: bytes, kind: str = "") -> tuple[str, Any]:
    """As `read`, of bytes.

    Raises:
        SpecError: no such kind.
        DataError: they are damaged, cut off, or of no known tool.
    """
    if kind and kind not in kinds():
        raise SpecError(f"no parser is called {kind!r}{did_you_mean(kind, kinds())}")
    if len(data) > LONGEST:
        raise DataError(f"{len(data)} bytes: longer than the output of any run")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # as PowerShell redirects
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        if (not kind and b"\0" in data[:4096]) or not data[:1].isascii() or data[:1] in (b"\n", b"\x12"):
            return _binary(data)
        text = data.decode("utf-8", "replace")
    if not kind and "\0" in text[:4096] and not text.lstrip("\0").startswith("<?xml"):
        return _binary(data)
    name = kind or recognize(text)
    if not name:
        start = text.strip()[:80]
        raise DataError(f"of no known tool ({', '.join(kinds())}); it begins with {start!r}")
    call = next(call for known, _, call in KINDS if known == name)
    value = call(text)
    _check_end(text, call, value)
    return name, value


def _check_end(text: str, call: Callable[[str], Any], value: Any) -> None:
    """Refuse a last number that may have lost digits: it counts, and its line has no end, as in a file that was cut."""
    if not re.search(r"[\d.]\Z", text):
        return
    try:
        same = call(text[: text.rfind("\n") + 1]) == value
    except DataError:
        same = False
    if not same:
        raise DataError(
            f"the last line has no end ({text.splitlines()[-1].strip()[-60:]!r}): was it cut off? If it is whole, end "
            "it with a line break"
        )


def _binary(data: bytes) -> tuple[str, Any]:
    """benchmark_model's two binary files, a result or an operator profile, or a trace of Perfetto."""
    reasons = []
    for name, call in BINARY:
        try:
            return name, call(data)
        except DataError as error:
            reasons.append(error)
    raise reasons[-1] if _all_packets(data) else reasons[0]


def _all_packets(data: bytes) -> bool:
    """A file of nothing but messages of the number 1 can only be a trace."""
    try:
        return {number for number, _ in protobuf.each_field(data)} == {1}
    except DataError:
        return False
