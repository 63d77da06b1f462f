"""benchmark_model's result and profile files (`--result_file_path`, `--op_profiling_output_mode=proto`).

No package carries the result's schema, so the wire format is read here: proto2, all fields optional. Field numbers:
LiteRT, `tools/benchmark/proto/benchmark_result.proto` and TensorFlow, `tflite/profiling/proto/profiling_info.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from math import isfinite

from edgedistill.errors import DataError
from edgedistill.parsers.op_profile import Operator
from edgedistill.specs import Spec, Summary

LATENCY = ("mean", "min", "max", "std", "p50", "p5", "p95", "init", "first_inference", "warmup")  # fields 1 to 10, ms
LIMIT = 1_000_000  # bytes; a result is a hundred
Field = int | float | bytes


class BenchmarkResult(Spec):
    """One run. Footprints are 10^6 bytes, of the whole process; None: not told."""

    name: str
    inference: Summary
    init_ms: float | None = None
    first_inference_ms: float | None = None
    warmup_ms: float | None = None
    warmup_runs: int | None = None
    init_memory_mb: float | None = None
    overall_memory_mb: float | None = None
    peak_memory_mb: float | None = None
    model_size_mb: float | None = None


def parse(data: bytes) -> BenchmarkResult:
    """A file that `--result_file_path` wrote.

    Raises:
        DataError: it is cut off, or no such file.
    """
    if not data or len(data) > LIMIT:
        raise DataError(f"{len(data)} bytes: not a result file of benchmark_model")
    top = fields(data)
    latency = _floats(_message(top, 2), LATENCY)
    memory = fields(_message(top, 3))
    misc = fields(_message(top, 4))
    if latency.get("mean", 0.0) <= 0:
        raise DataError("no average latency above zero in it: not a result file of benchmark_model, or of a failed run")
    positive = {
        f"{name}_ms": latency[name] for name in ("min", "max", "p5", "p50", "p95") if latency.get(name, 0.0) > 0
    }
    count = misc.get(2, 1)
    runs = count if isinstance(count, int) and count >= 1 else 1
    inference = Summary(count=runs, mean_ms=latency["mean"], std_ms=max(0.0, latency.get("std", 0.0)), **positive)
    name = top.get(1, b"")
    warmups = misc.get(3)
    return BenchmarkResult(
        name=name.decode("utf-8", "replace") if isinstance(name, bytes) else "",
        inference=inference,
        init_ms=latency.get("init"),
        first_inference_ms=latency.get("first_inference"),
        warmup_ms=latency.get("warmup"),
        warmup_runs=warmups if isinstance(warmups, int) else None,
        init_memory_mb=_number(memory, 1, 1024 / 1e6),
        overall_memory_mb=_number(memory, 2, 1024 / 1e6),
        peak_memory_mb=_number(memory, 3, 2**20 / 1e6),
        model_size_mb=_number(misc, 1, 1.0),
    )


def parse_profile(data: bytes) -> tuple[Operator, ...]:
    """The operators of the inferences in a file that `--op_profiling_output_mode=proto` wrote.

    A delegate that tells its own kernels is counted by these, and not as the one node that it is in the graph too.

    Raises:
        DataError: it is cut off, or no such file.
    """
    runtime = _message(fields(data), 3)
    rows, inner = list[Operator](), list[Operator]()
    for number, value in each_field(runtime):
        for within, piece in each_field(value) if isinstance(value, bytes) else ():
            if isinstance(piece, bytes) and (number, within) == (1, 3):
                rows.append(_operator(piece, ""))
            elif isinstance(piece, bytes) and (number, within) == (2, 2):
                inner.append(_operator(piece, "Delegate/"))
    if not rows and not inner:
        raise DataError("no operator in it: not a profile of benchmark_model")
    return (*(row for row in rows if not (inner and "delegate" in row.kind.lower())), *inner)


def _operator(data: bytes, prefix: str) -> Operator:
    seen = fields(data)
    average, calls = _number(fields(_message(seen, 2)), 3, 1e-3), _number(seen, 4, 1.0)
    kind, name = (_message(seen, number).decode("utf-8", "replace") for number in (1, 5))
    return Operator(kind=kind, name=prefix + name, time_ms=average or 0.0, calls=int(calls or 1))


def fields(data: bytes) -> dict[int, Field]:
    """The last value of each field of a message; a repeated one keeps its last.

    Raises:
        DataError: the bytes are no message.
    """
    return dict(each_field(data))


def each_field(data: bytes) -> Iterator[tuple[int, Field]]:
    """Number and value of every field, in order: varints as int, 32 and 64 bits as float, the rest as bytes.

    Raises:
        DataError: the bytes are no message.
    """
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind, number = tag & 7, tag >> 3
        if not number:
            raise DataError(f"byte {place}: no protobuf message")
        if kind == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        else:
            size = {1: 8, 5: 4}.get(kind, -1)
        piece = data[place : place + size]
        if size < 0 or len(piece) < size:
            raise DataError(f"byte {place}: no protobuf message, or one that was cut off")
        place += size
        yield number, piece if kind == 2 else struct.unpack("<d" if kind == 1 else "<f", piece)[0]


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte, place = data[place], place + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise DataError(f"byte {place}: no protobuf message, or one that was cut off")


def _message(top: Mapping[int, Field], number: int) -> bytes:
    value = top.get(number, b"")
    if not isinstance(value, bytes):
        raise DataError(f"field {number} is no message: not a result file of benchmark_model")
    return value


def _floats(data: bytes, names: tuple[str, ...]) -> dict[str, float]:
    seen = fields(data)
    return {
        name: float(value)
        for n, name in enumerate(names, 1)
        if isinstance(value := seen.get(n), int | float) and isfinite(value) and abs(value) < 1e12
    }


def _number(seen: Mapping[int, Field], number: int, unit: float) -> float | None:
    value = seen.get(number)
    if not isinstance(value, int | float) or not isfinite(value) or not 0 <= value < 1e15:
        return None
    return value * unit
