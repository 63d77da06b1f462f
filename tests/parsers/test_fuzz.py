"""No input makes a parser crash, and what is written in a tool's form is read back as it was meant."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import outputs
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgedistill import parsers
from edgedistill.errors import DataError
from edgedistill.parsers import benchmark_model, llama_bench, odpm, perfetto, protobuf
from edgedistill.specs import Spec

RECORDED = Path(__file__).parent / "recorded"
TEXTS = {
    **outputs.ALL,
    "plist": outputs.PLIST,
    **{path.name: path.read_text()[-6000:] for path in RECORDED.iterdir()},
}
WHOLE = {path.name: path.read_text() for path in RECORDED.iterdir()}
calm = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
times = st.floats(1.0, 1e9, allow_nan=False)


def quietly(call: Callable[..., Any], *arguments: Any) -> None:
    """A value or one clear error, and nothing else."""
    told = "a value"
    try:
        call(*arguments)
    except DataError as error:
        told = str(error)
    assert 5 < len(told) < 2000


@pytest.mark.parametrize("name", TEXTS)
def test_a_damaged_output_is_a_value_or_one_clear_error(name: str) -> None:
    text, draw = TEXTS[name], random.Random(name)
    for turn in range(60):
        damaged = list(text)
        for _ in range(draw.randint(1, 8)):
            place, kind = draw.randrange(len(damaged) or 1), draw.randrange(5)
            if kind == 0:
                del damaged[place : place + draw.randint(1, 200)]
            elif kind == 1:
                damaged[place:place] = draw.choice(
                    ["-", "nan", "1e999", "\0", "{", "]", '"', ",", "%", "9" * 40, "é", "\n"]
                )
            elif kind == 2:
                damaged = damaged[:place]
            elif kind == 3:
                damaged[place:place] = damaged[: draw.randint(1, 100)]
            elif damaged:
                damaged[place % len(damaged)] = draw.choice(string.printable)
        whole = "".join(damaged)
        quietly(parsers.parse, whole.encode())
        for kind in parsers.kinds() if turn == 0 else ():
            quietly(parsers.parse, whole.encode(), kind)


def leaves(value: Any) -> set[float]:
    """All numbers in a parser's value."""
    if isinstance(value, Spec):
        value = value.model_dump()
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return {number for item in value for number in leaves(item)}
    return {float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else set()


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "README.md"])
def test_an_output_that_is_cut_off_tells_no_other_figure(name: str) -> None:
    """Wherever a file ends, what is read of it stands in the whole one as well: no number that lost digits, no average
    of less, no older figure in the place of a newer one.
    """
    text, draw = WHOLE.get(name, TEXTS[name]), random.Random(name)
    kind, value = parsers.parse(text.encode())
    known = leaves(value) | {0.0}  # lines that are counted: of none there are none
    if kind == "batterystats":
        known |= set(map(float, range(value.steps)))
    for end in sorted(draw.sample(range(len(text)), min(len(text), 150))):
        try:
            seen, part = parsers.parse(text[:end].encode())
        except DataError:
            continue
        assert seen == kind, text[max(0, end - 60) : end]
        assert leaves(part) <= known, text[max(0, end - 60) : end]


ODD_NUMBERS = ["-1", "0", "1e999", "9" * 25, "nan", "-nan", "inf", "1,234", "0x1f", "", "٣"]
ODD_LINES = ["", "\x1b[31m", "{", "[]", "\x00", "ERROR: ", "\ufeff", "=" * 99]


def odd(draw: st.DrawFn, text: str) -> str:
    """A text of a tool with its lines moved, dropped or repeated, and its numbers changed into others."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(lines) - 1)))
        what = draw(st.sampled_from(["drop", "repeat", "swap", "number", "unit", "join", "insert"]))
        if what == "drop":
            del lines[place : place + draw(st.integers(1, 4))]
        elif what == "repeat":
            lines[place:place] = lines[place : place + draw(st.integers(1, 4))]
        elif what == "swap" and lines:
            other = draw(st.integers(0, len(lines) - 1))
            lines[place], lines[other] = lines[other], lines[place]
        elif what == "number" and lines:
            numbers = list(re.finditer(r"\d+(?:\.\d+)?", lines[place]))
            if numbers:
                found = draw(st.sampled_from(numbers))
                value = draw(
                    st.sampled_from(["-1", "0", "1e999", "9" * 25, "nan", "-nan", "inf", "1,234", "0x1f", "", "٣"])
                )
                lines[place] = lines[place][: found.start()] + value + lines[place][found.end() :]
        elif what == "unit" and lines:
            lines[place] = re.sub(
                r"\b(ms|mW|MB|kB|us|s)\b", draw(st.sampled_from(["us", "W", "KiB", "h", ""])), lines[place]
            )
        elif what == "join" and lines:
            lines[place : place + 2] = [" ".join(lines[place : place + 2])]
        else:
            lines.insert(place, draw(st.sampled_from(ODD_LINES)))
    return draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines)


@settings(calm, max_examples=400)
@given(st.data(), st.sampled_from(sorted(TEXTS)), st.booleans())
def test_odd_lines_and_numbers_are_a_value_or_one_clear_error(data: Any, name: str, named: bool) -> None:
    text = data.draw(st.composite(odd)(TEXTS[name]))
    kind = parsers.recognize(TEXTS[name]) if named else ""
    quietly(parsers.parse, text.encode("utf-8", "surrogatepass"), kind)


def perfetto_trace() -> bytes:
    """Two rails and a battery over a second, as Google's library writes them."""
    file = descriptor_pb2.FileDescriptorProto(name="trace.proto", package="p", syntax="proto2")

    def message(name: str, *members: tuple[str, int, int, str]) -> None:
        made = file.message_type.add(name=name)
        for member, number, kind, of in members:
            many = kind == 11 and member.endswith("s")
            field = made.field.add(name=member, number=number, type=kind, label=3 if many else 1)  # type: ignore[arg-type]
            if of:
                field.type_name = of

    message("Rail", ("index", 1, 13, ""), ("name", 2, 9, ""), ("subsystem", 3, 9, ""), ("rate", 4, 13, ""))
    message("Energy", ("index", 1, 13, ""), ("time_ms", 2, 4, ""), ("uj", 3, 4, ""))
    message("Rails", ("rails", 1, 11, ".p.Rail"), ("energys", 2, 11, ".p.Energy"))
    message("Battery", ("charge", 1, 3, ""), ("percent", 2, 2, ""), ("current", 3, 3, ""), ("voltage", 7, 3, ""))
    message("Packet", ("timestamp", 8, 4, ""), ("battery", 38, 11, ".p.Battery"), ("rail", 40, 11, ".p.Rails"))
    message("Trace", ("packets", 1, 11, ".p.Packet"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[attr-defined]
    trace: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("p.Trace"))()
    for n in range(10):
        packet = trace.packets.add(timestamp=10**9 * n)
        for index, name in enumerate(("S2M_VDD_CPUCL2", "S10M_VDD_TPU")):
            if not n:
                packet.rail.rails.add(index=index, name=name, subsystem="cpu", rate=1023)
            packet.rail.energys.add(index=index, time_ms=1000 * n, uj=10**12 + 1000 * n * (index + 1))
        packet.battery.charge, packet.battery.current, packet.battery.percent = 2_000_000, -250_000 - n, 50.5
        packet.battery.voltage = 4_000_000
    return bytes(trace.SerializeToString())


def test_a_trace_is_read_as_it_was_written() -> None:
    data = perfetto_trace()
    kind, seen = parsers.parse(data)
    assert kind == "perfetto"
    assert {name: series[3] for name, series in seen.rails.items()} == {
        "S2M_VDD_CPUCL2": (3.0, 10**12 + 3000), "S10M_VDD_TPU": (3.0, 10**12 + 6000)}  # fmt: skip
    assert (seen.battery[3].time_s, seen.battery[3].current_ua, seen.battery[3].percent) == (3.0, -250_003, 50.5)
    draw = random.Random(1)
    for _ in range(400):
        damaged = bytearray(data[: draw.randint(0, len(data))])
        for _ in range(draw.randint(0, 4)):
            if damaged:
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        quietly(perfetto.parse, bytes(damaged))
        quietly(parsers.parse, bytes(damaged))


@pytest.mark.parametrize("kind", parsers.kinds())
@pytest.mark.parametrize("text", ["", "\n \r\n", "\x1b[31m\x1b[0m\n", "\0", "\ufeff"])
def test_nothing_is_one_clear_error(kind: str, text: str) -> None:
    with pytest.raises(DataError):
        parsers.parse(text.encode(), kind)


@calm
@given(
    st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)), st.sampled_from(["", *parsers.kinds()])
)
def test_any_bytes_are_a_value_or_one_clear_error(data: bytes, kind: str) -> None:
    quietly(parsers.parse, data, kind)


@calm
@given(st.integers(2, 10**6), st.lists(times, min_size=6, max_size=6), st.booleans(), st.booleans())
def test_benchmark_model_reads_what_was_printed(
    count: int, values: list[float], percentiles: bool, prefix: bool
) -> None:
    low, p5, middle, mean, p95, high = sorted(values)
    tail = f" p5={p5:g} median={middle:g} p95={p95:g}" if percentiles else ""
    lines = [
        "count=1 curr=5",
        f"count={count} first={high:g} curr={low:g} min={low:g} max={high:g} avg={mean:g} std={low:g}{tail}",
        f"Inference timings in us: Init: {p5:g}, First inference: {high:g}, Warmup (avg): 5, Inference (avg): {mean:g}",
    ]
    seen = benchmark_model.parse("\n".join(("INFO: " if prefix else "") + line for line in lines))
    assert seen.inference is not None
    assert seen.inference.count == count
    told = (seen.inference.min_ms, seen.inference.mean_ms, seen.inference.max_ms, seen.init_ms)
    assert told == pytest.approx([float(f"{value:g}") / 1e3 for value in (low, mean, high, p5)])
    if percentiles:
        told = (seen.inference.p5_ms, seen.inference.p50_ms, seen.inference.p95_ms, None)
        assert told[:3] == pytest.approx([float(f"{value:g}") / 1e3 for value in (p5, middle, p95)])
    else:
        assert seen.inference.p95_ms is None


@calm
@given(st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 4096), times), min_size=1, max_size=4))
def test_llama_bench_reads_what_was_printed(tests: list[tuple[int, int, float]]) -> None:
    tests = [(prompt or 1, gen, speed) for prompt, gen, speed in tests]
    rows = [f"| m | 1 GiB | CPU | 4 | pp{p}{f'+tg{g}' if g else ''} | {speed:.2f} ± 0.10 |" for p, g, speed in tests]
    seen = llama_bench.parse(
        "\n".join(["| model | size | backend | threads | test | t/s |", "| - | - | - | - | - | - |", *rows])
    )
    assert [(item.n_prompt, item.n_gen) for item in seen] == [(p, g) for p, g, _ in tests]
    assert [item.tokens_per_s for item in seen] == pytest.approx([float(f"{speed:.2f}") for _, _, speed in tests])


@calm
@given(st.dictionaries(st.text(string.ascii_uppercase + "_0123456789", min_size=1, max_size=12), st.integers(0, 10**15),
                       min_size=1, max_size=8), st.integers(0, 10**12))  # fmt: skip
def test_rails_read_what_was_printed(rails: dict[str, int], time_ms: int) -> None:
    text = f"t={time_ms}\n" + "".join(
        f"CH{n}(T={time_ms})[{name}], {uj}\n" for n, (name, uj) in enumerate(rails.items())
    )
    seen = odpm.parse(text)
    assert (seen.time_ms, dict(seen.energy_uj)) == (time_ms, rails)


def result_message() -> Any:
    """The message of `--result_file_path`, built by Google's own library."""
    file = descriptor_pb2.FileDescriptorProto(name="result.proto", package="t", syntax="proto2")
    kinds = {"float": 2, "int32": 5, "string": 9}
    shapes = {
        "Latency": [(f"f{n}", n, "float") for n in range(1, 11)],
        "Memory": [("init_kb", 1, "int32"), ("overall_kb", 2, "int32"), ("peak_mb", 3, "float")],
        "Misc": [("size_mb", 1, "float"), ("runs", 2, "int32"), ("warmups", 3, "int32"), ("throughput", 4, "float")],
    }
    for name, members in shapes.items():
        message = file.message_type.add(name=name)
        for member, number, kind in members:
            message.field.add(name=member, number=number, type=kinds[kind], label=1)  # type: ignore[arg-type]
    whole = file.message_type.add(name="Result")
    whole.field.add(name="name", number=1, type=9, label=1)
    for number, (member, kind) in enumerate((("latency", "Latency"), ("memory", "Memory"), ("misc", "Misc")), 2):
        whole.field.add(name=member, number=number, type=11, label=1, type_name=f".t.{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[attr-defined]
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Result"))


RESULT = result_message()


@calm
@given(
    st.lists(st.floats(0.0078125, 1e6, width=32), min_size=10, max_size=10),
    st.integers(1, 10**6),
    st.integers(0, 10**6),
)
def test_a_result_file_is_read_as_it_was_written(values: list[float], runs: int, kb: int) -> None:
    message = RESULT(name="benchmark")
    for number, value in enumerate(values, 1):
        setattr(message.latency, f"f{number}", value)
    message.memory.init_kb, message.memory.peak_mb, message.misc.runs = kb, 12.5, runs
    data = message.SerializeToString()
    kind, seen = parsers.parse(data)
    assert kind == "benchmark_result"
    mean, low, high, std, middle, p5, p95, init, first, warmup = values
    inference = seen.inference
    assert (inference.count, inference.mean_ms, inference.min_ms, inference.max_ms) == (runs, mean, low, high)
    assert (inference.std_ms, inference.p50_ms, inference.p5_ms, inference.p95_ms) == (std, middle, p5, p95)
    assert (seen.init_ms, seen.first_inference_ms, seen.warmup_ms) == (init, first, warmup)
    assert seen.init_memory_mb == pytest.approx(kb * 1024 / 1e6)
    for end in range(len(data)):
        quietly(protobuf.parse, data[:end])


def test_a_profile_file_is_read_as_litert_writes_it() -> None:
    pb2 = pytest.importorskip("ai_edge_litert.profiling_info_pb2")
    profile = pb2.BenchmarkProfilingData(model_name="m.tflite")
    graph = profile.runtime_profile.subgraph_profiles.add(subgraph_name="main", subgraph_index=0)
    for kind, spent in (("TfLiteXNNPackDelegate", 900), ("SOFTMAX", 100)):
        row = graph.per_op_profiles.add(node_type=kind, name=f"{kind}/0", times_called=1, run_order=0)
        row.inference_microseconds.avg = spent
    assert [(row.kind, row.time_ms) for row in protobuf.parse_profile(profile.SerializeToString())] == [
        ("TfLiteXNNPackDelegate", 0.9), ("SOFTMAX", 0.1)]  # fmt: skip
    inner = profile.runtime_profile.delegate_profiles.add(delegate_name="XNNPACK")
    inner.per_op_profiles.add(node_type="Fully Connected (NC, QC8)", times_called=2).inference_microseconds.avg = 450
    kind, rows = parsers.parse(profile.SerializeToString())
    assert kind == "op_profile"
    assert [(row.kind, row.name, row.time_ms, row.calls) for row in rows] == [
        ("SOFTMAX", "SOFTMAX/0", 0.1, 1), ("Fully Connected (NC, QC8)", "Delegate/", 0.45, 2)]  # fmt: skip
