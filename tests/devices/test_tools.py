"""Benchmark programs on a phone without Python: stand-ins that print what the real ones print."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from fake_adbd import FakeAdbd
from phones import QUICK, left_over, put

from edgedistill.errors import EdgedistillError, InfrastructureError, MissingDependency, SpecError, StageError
from edgedistill.runners import How, Job, adb
from edgedistill.specs import Measurement

sys.path.insert(0, str(Path(__file__).parents[1] / "parsers"))

import outputs

RECORDED = Path(__file__).parents[1] / "parsers" / "recorded"
ORDINARY = f"cat <<'END'\n{outputs.BENCHMARK}END\n"
PROFILING = (
    f"case \"$*\" in *enable_op_profiling=true*) cat <<'END'\n{outputs.BENCHMARK}{outputs.PROFILE}END\nexit;; esac\n"
)


def bench(phone: FakeAdbd, job: Job, launches: int = 1, **how: object) -> Measurement:
    told = How(**{"where": phone.serial, "python": "no-python", **how})  # type: ignore[arg-type]
    return adb.measure_many({"m": job}, launches=launches, timing=QUICK, how=told)["m"]


def test_a_benchmark_program_that_is_on_the_phone_is_found(phone: FakeAdbd, job: Job) -> None:
    put(phone.bin / "benchmark_model", f'echo "$@" >>{phone.root}/called\nsleep 0.5\n{PROFILING}{ORDINARY}')
    seen = bench(phone, job, launches=2)
    assert seen.runtime == "benchmark_model"
    assert seen.samples_ms == ()
    assert [launch.summary.count for launch in seen.launches if launch.summary] == [50, 50]
    assert (seen.latency_p50_ms, seen.latency_p95_ms) == (40.95, 42.8)
    assert seen.launch_medians_ms == (40.95, 40.95)
    assert (seen.load_ms, seen.first_inference_ms) == (41.75, 52.0)
    assert [(item.unit, item.operators) for item in seen.placement] == [("cpu (XNNPACK)", 1), ("cpu", 1)]
    assert seen.outputs is None
    assert seen.peak_memory_mb is not None
    assert 0.5 < seen.peak_memory_mb < 39  # the stand-in's own, which the kernel tells, and not what it prints
    called = (phone.root / "called").read_text().splitlines()
    assert len(called) == 3
    assert all("--signature_to_run_for=length_8 --num_threads=1" in line for line in called)
    assert left_over(phone.root) == []


def test_a_result_file_counts_before_what_is_printed(phone: FakeAdbd, job: Job, tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "parsers"))
    from test_fuzz import RESULT

    message = RESULT(name="x")
    for number, value in enumerate((7.0, 6.0, 9.0, 0.5, 6.5, 6.1, 8.5, 30.0, 12.0, 8.0), 1):
        setattr(message.latency, f"f{number}", value)
    message.misc.runs = 64
    (phone.root / "result.pb").write_bytes(message.SerializeToString())
    copy = f'for a; do case $a in --result_file_path=*) cp {phone.root}/result.pb "${{a#*=}}";; esac; done\n'
    (tmp_path / "my_benchmark_model").write_text(f"#!/bin/sh\n{copy}{PROFILING}{ORDINARY}")
    seen = bench(phone, job, tool=str(tmp_path / "my_benchmark_model"))
    assert seen.launches[0].summary is not None
    assert (seen.launches[0].summary.count, seen.latency_p50_ms, seen.latency_p95_ms) == (64, 6.5, 8.5)


def test_an_old_build_tells_no_median(phone: FakeAdbd, job: Job) -> None:
    old = outputs.BENCHMARK.replace(" p5=40300 median=40950 p95=42800", "")
    put(phone.bin / "benchmark_model", f"cat <<'END'\n{old}END")
    seen = bench(phone, job)
    assert seen.launch_medians_ms == pytest.approx((41.0052,))
    assert seen.context["launch_statistic"] == "mean"
    with pytest.raises(ValueError, match="does not tell the 95% quantile"):
        _ = seen.latency_p95_ms


def test_llama_bench_keeps_samples(phone: FakeAdbd, job: Job, tmp_path: Path) -> None:
    shutil.copy(RECORDED / "x86_64_debian-sid_llama.cpp-0.7.0.json", phone.root / "out.json")
    put(phone.bin / "llama-bench", f'echo "$@" >{phone.root}/called; echo "loading" >&2; cat {phone.root}/out.json')
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    seen = bench(phone, Job(model, "length_8", job.inputs, decode_tokens=32))
    assert len(seen.samples_ms) == 5
    assert seen.launch_counts == (5,)
    assert set(seen.tokens_per_s) == {"prefill", "decode"}
    assert " -p 8 -n 32 " in (phone.root / "called").read_text()


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (
            "echo 'ERROR: Failed to load model' >&2; exit 1",
            StageError,
            "cannot run tiny_static.tflite .*Failed to load",
        ),
        ("kill -SEGV $$", StageError, "crashed on tiny_static"),
        ("exit 127", MissingDependency, "must be built for this device"),
        ("echo nothing", InfrastructureError, "did not end"),
        (f"echo '{outputs.BENCHMARK[:900]}'", InfrastructureError, "benchmark_model: "),
    ],
)
def test_what_the_program_does(
    phone: FakeAdbd, job: Job, script: str, kind: type[EdgedistillError], message: str
) -> None:
    put(phone.bin / "benchmark_model", script)
    with pytest.raises(kind, match=message):
        bench(phone, job)
    assert left_over(phone.root) == []


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ({"tool": "/nowhere/benchmark_model"}, SpecError, "no such file"),
        ({"tool": "device:/nowhere/benchmark_model"}, SpecError, "has no such program"),
        ({"tool": "speedtest"}, SpecError, "its file name must say"),
        ({"tool": "device:/x/llama-bench"}, SpecError, "llama-bench runs gguf files"),
        ({}, MissingDependency, r"has no no-python: .*--tool FILE \(benchmark_model or litert-benchmark\)"),
    ],
)
def test_a_program_that_cannot_be(
    phone: FakeAdbd, job: Job, how: dict[str, str], kind: type[EdgedistillError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        bench(phone, job, **how)
