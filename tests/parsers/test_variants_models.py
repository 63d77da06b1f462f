"""What tools that run models print in the world: other versions and logs. Typed again, with figures of ours."""
# ruff: noqa: E501 (lines of tools)

# ruff: noqa: E501 (lines of tools)
from __future__ import annotations

import outputs
import pytest

from edgedistill import parsers
from edgedistill.errors import DataError
from edgedistill.parsers import (
    benchmark_model,
    executorch,
    litert_benchmark,
    litert_lm,
    llama_bench,
    llama_timings,
    mlperf,
    op_profile,
    ort_perf_test,
    trtexec,
    xctest,
)

LITERT = r"""INFO: The input model file size (MB): 3.5
INFO: Initialized session in 4.5ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=1055 first=1033 curr=473 min=443 max=1033 avg=465.5 std=18 p5=459 median=463 p95=478

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=2112 first=463 curr=459 min=442 max=979 avg=464.5 std=13 p5=460 median=462 p95=478

"""


RESULTS = r"""INFO: [.\litert/tools/benchmark_litert_model.h:92]
========== BENCHMARK RESULTS ==========
INFO: [.\litert/tools/benchmark_litert_model.h:92] Signature name:       prefill_64
INFO: [.\litert/tools/benchmark_litert_model.h:94] Model initialization: 86.75 ms
INFO: [.\litert/tools/benchmark_litert_model.h:96] Warmup (first):       4.44 ms
INFO: [.\litert/tools/benchmark_litert_model.h:98] Warmup (avg):         0.52 ms (957 runs)
INFO: [.\litert/tools/benchmark_litert_model.h:100] Inference (avg):      0.46 ms (2166 runs)
INFO: [.\litert/tools/benchmark_litert_model.h:104] Inference (min):      0.35 ms
INFO: [.\litert/tools/benchmark_litert_model.h:106] Inference (max):      0.74 ms
INFO: [.\litert/tools/benchmark_litert_model.h:108] Inference (std):      0.03
INFO: [.\litert/tools/benchmark_litert_model.h:115] Throughput:           1243.93 MB/s
INFO: [.\litert/tools/benchmark_litert_model.h:124]
Memory Usage:
INFO: [.\litert/tools/benchmark_litert_model.h:126] Init footprint:       10.00 MB
INFO: [.\litert/tools/benchmark_litert_model.h:128] Overall footprint:    20.00 MB
INFO: [.\litert/tools/benchmark_litert_model.h:135] Peak memory usage not available. (peak_mem_mb <= 0)
"""


def test_benchmark_model_of_litert_ends_with_a_block_of_its_own() -> None:
    kind, seen = parsers.parse((LITERT + RESULTS).encode())
    assert kind == "benchmark_model"
    assert (seen.inference.count, seen.inference.p95_ms) == (2112, 0.478)
    assert seen.init_memory_mb == pytest.approx(10.48576)
    assert seen.overall_memory_mb == pytest.approx(20.97152)
    kind, alone = parsers.parse(RESULTS.encode())
    assert kind == "litert_benchmark"
    assert (alone.signature, alone.inference.count, alone.inference.mean_ms) == ("prefill_64", 2166, 0.46)
    assert (alone.inference.std_ms, alone.init_ms, alone.first_inference_ms) == (0.03, 86.75, 4.44)
    with pytest.raises(DataError, match="more than one run"):
        litert_benchmark.parse(RESULTS + RESULTS)


PREFIXES = [
    "05-30 15:16:44.857 10123  3380  3380 I tflite  : ",  # logcat -v uid
    "05-30 15:16:44.857123 +0200  3380  3380 I tflite  : ",  # logcat -v usec,zone
    "05-30 15:16:44.857 I/tflite  ( 3380): ",  # logcat -v time
    "I/tflite  : ",  # logcat -v tag
    "\x1b[38;5;40m05-30 15:16:44.857  3380  3380 I tflite  : ",  # logcat -v color
    "I0000 00:00:1727785612.123456    3380 benchmark_tflite_model.cc:745] ",  # absl before its start
    "2018-09-10 13:35:11.172809: I tensorflow/lite/tools/benchmark/benchmark_model.cc:361] ",
    "2026-01-01T10:00:00.1234567Z INFO: ",  # a CI's log
    "2026-01-01T10:00:00+01:00 \x1b[0;32mINFO: \x1b[0m",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_logs_put_in_front_of_a_line(prefix: str) -> None:
    lines = [prefix + line.removeprefix("INFO: ") for line in outputs.BENCHMARK.splitlines()]
    other = "05-30 15:16:44.900  1200  1300 W ActivityManager: Slow operation: 52ms so far, now at startProcess"
    seen = benchmark_model.parse("\r\n".join([other, *lines, other]) + "\x1b[0m")
    assert seen == benchmark_model.parse(outputs.BENCHMARK)


def test_tensorflows_own_tool_measures_twice() -> None:
    stamp = "2018-09-10 13:35:11.172809: I tensorflow/tools/benchmark/benchmark_model.cc:361] "
    text = "".join(f"{stamp}{line}\n" for line in (
        "count=1 curr=293039", "count=231 first=41000 curr=43000 min=38000 max=49000 avg=43366.3 std=1377",
        "count=221 first=47000 curr=45000 min=43000 max=49000 avg=45429.5 std=991",
        "Average inference timings in us: Warmup: 293039, no stats: 43366, with stats: 45429",
        "Memory (bytes): count=221 curr=1024(all same)",
        "Timings (microseconds): count=221 first=47000 curr=45000 min=43000 max=49000 avg=45400 std=99",
    ))  # fmt: skip
    seen = benchmark_model.parse(text)
    assert seen.inference is not None
    assert (seen.inference.count, seen.inference.mean_ms) == (231, pytest.approx(43.3663))


def test_the_first_version_of_tflites_tool() -> None:
    seen = benchmark_model.parse("Average inference timings in us: 12500 , Warmup: 14000, \n")
    assert seen.inference is not None
    assert seen.inference.mean_ms == 12.5


def test_an_operator_profile_with_a_start_column() -> None:
    text = (
        "============================== Run Order ==============================\n"
        "\t             [node type]\t          [start]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]"
        "\t[Name]\n"
        "\t                 CONV_2D\t            0.000\t    1.356\t    1.250\t 62.500%\t 62.500%\t     0.000\t        1\t[a]:0\n"
        "\t       DEPTHWISE_CONV_2D\t            1.360\t    0.800\t    0.750\t 37.500%\t100.000%\t     0.000\t        2\t[b]:1\n"
    )
    rows = op_profile.parse(text)
    assert [(row.kind, row.time_ms, row.calls, row.name) for row in rows] == [
        ("CONV_2D", 1.25, 1, "[a]:0"), ("DEPTHWISE_CONV_2D", 0.75, 2, "[b]:1")]  # fmt: skip


def test_litert_lm_of_other_versions() -> None:
    text = (
        "BenchmarkInfo:\n  Init Phases (2):\n    - Executor initialization: 800.5 ms\n    Total init time: 900.25 ms\n"
        "  Time to first token: 2.4 s\n"
        "    Prefill Turn 1: Processed 16 tokens in 819.9514ms duration.\n      Prefill Speed: 19.51 tokens/sec.\n"
        "    Decode Turn 1: Processed 88 tokens in 1m2.5s duration.\n"
    )
    seen = litert_lm.parse(text)
    assert (seen.init_ms, seen.first_token_ms) == (900.25, 2400)
    assert seen.prefill_turns[0].seconds == pytest.approx(0.8199514)
    assert seen.decode_turns[0].seconds == 62.5


def test_llama_bench_among_other_lines() -> None:
    head = "| model | size | backend | ngl | test | t/s |\n| --- | --: | --- | --: | --: | --: |\n"
    text = (
        "ggml_cuda_init: found 1 ROCm devices:\nllama-bench: benchmark 1/2: starting\n" + head
        + "| qwen3 8B | 4.68 GiB | Vulkan | -1 | pp512 @ d8192 | 655.33 ┬▒ 1.50 |\n"
        + "llama-bench: benchmark 2/2: generation run 1/1\n"
        + "| qwen3 8B | 4.68 GiB | Vulkan | -1 | tg128 @ d8192 | 1,084.81 ± 0.00 |\n\nbuild: 067de93 (200)\n"
    )  # fmt: skip
    tests = llama_bench.parse(text)
    assert [(item.tokens_per_s, item.std_tokens_per_s, item.n_depth) for item in tests] == [
        (655.33, 1.5, 8192), (1084.81, 0.0, 8192)]  # fmt: skip
    assert tests[0].build == "067de93 (200)"


CSV = (
    "build_commit,build_number,cpu_info,model_type,n_threads,n_prompt,n_gen,test_time,avg_ns,stddev_ns,avg_ts,stddev_ts\n"
    "abc123,1234,Apple M1 Pro,llama 8B Q1_0,8,512,0,2026-04-05T12:00:00Z,1066666666,5000000,480.0,2.5\n"
    "abc123,1234,Apple M1 Pro,llama 8B Q1_0,8,0,128,2026-04-05T12:00:01Z,1523809523,3000000,84.0,0.3\n"
)


def test_llama_bench_without_quotes_and_cut_off() -> None:
    assert [item.tokens_per_s for item in llama_bench.parse(CSV)] == [480, 84]
    with pytest.raises(DataError, match="cut off"):
        llama_bench.parse(CSV[: CSV.rindex(",84.0")])
    with pytest.raises(DataError, match="the last line has no end"):
        parsers.parse(CSV.rstrip().encode())
    names = "build_commit, n_prompt, n_gen, avg_ts"
    sql = f"INSERT INTO test ({names}) VALUES ('a', '8', '0', '5.5');\nINSERT INTO test ({names}) VALUES ('a', '0', '4', '2.5');\n"
    assert [item.tokens_per_s for item in llama_bench.parse(sql)] == [5.5, 2.5]
    with pytest.raises(DataError, match="2 statements are begun and 1 ended"):
        llama_bench.parse(sql[:-12])


def test_llama_timings_of_every_version() -> None:
    kind, seen = parsers.parse(("a story of a robot\n" + outputs.LLAMA_TIMINGS).encode())
    assert kind == "llama_timings"
    assert (seen.prompt_tokens, seen.decode_tokens, seen.load_ms, seen.total_ms) == (10, 30, 250, 2500)
    assert (seen.prefill_tokens_per_s, seen.decode_tokens_per_s) == (25, 15)
    for name in ("llama_print_timings", "llama_perf_context_print"):
        old = outputs.LLAMA_TIMINGS.replace("0.07.869.4", "").replace("common_perf_print", name)
        assert llama_timings.parse("\n".join(line[5:] for line in old.splitlines())) == seen
    server = (
        "slot print_timing: id  0 | task 0 | \nprompt eval time =     400.00 ms /    10 tokens (   40.00 ms per token,    "
        "25.00 tokens per second)\n       eval time =    2000.00 ms /    30 tokens (   66.67 ms per token)\n"
        "      total time =    2400.00 ms /    40 tokens\n"
    )
    assert llama_timings.parse(server).decode_tokens_per_s == 15
    short = llama_timings.parse("Paris.\n\n[ Prompt: 45.1 t/s | Generation: 2.8 t/s ]\n\nExiting...")
    assert (short.prefill_tokens_per_s, short.decode_tokens_per_s, short.load_ms) == (45.1, 2.8, None)
    none = llama_timings.parse(
        "llama_perf_context_print: prompt eval time =  2.00 ms /  9 tokens ( 0.22 ms per token, 4500.00 tokens per second)\n"
        "llama_perf_context_print:        eval time =  0.00 ms /  1 runs   (    0.00 ms per token,      inf tokens per "
        "second)\n"
    )
    assert (none.prefill_tokens_per_s, none.decode_tokens_per_s) == (4500, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (outputs.LLAMA_TIMINGS * 2, "twice"),
        (outputs.LLAMA_TIMINGS.partition("0.07.869.467")[0], "cut off"),
        (outputs.LLAMA_TIMINGS.replace("2000.00 ms /    30", "20"), "cut off"),
        ("[ Prompt: 5 t/s | Generation: 2 t/s ]\n" * 2, "2 answers"),
        ("loading\n", "no 'eval time ='"),
    ],
)
def test_llama_timings_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        llama_timings.parse(text)


def test_onnxruntime_perf_test() -> None:
    kind, seen = parsers.parse(outputs.ORT.encode())
    assert kind == "ort_perf_test"
    inference = seen.inference
    assert (inference.count, inference.mean_ms, inference.p50_ms, inference.p95_ms) == (100, 12.0, 11.5, 14.0)
    assert (seen.session_ms, seen.first_inference_ms, seen.p90_ms, seen.p99_ms) == (250, 14, 13, 30)
    assert (seen.peak_memory_mb, seen.cpu_percent) == (50, 50)
    old = ort_perf_test.parse("Average inference time cost: 12 ms\nP50 Latency is 0.0115sec\nP99 Latency is 0.03sec\n")
    assert (old.inference.p50_ms, old.p99_ms) == (11.5, 30)
    for text, message in (
        ("Session creation time cost: 0.25 s\n", "no 'Average"),
        (outputs.ORT + outputs.ORT.replace("12.0 ms", "13.0 ms"), "twice"),
    ):
        with pytest.raises(DataError, match=message):
            ort_perf_test.parse(text)


def test_trtexec() -> None:
    kind, seen = parsers.parse(outputs.TRTEXEC.encode())
    assert kind == "trtexec"
    assert (seen.latency.mean_ms, seen.latency.p50_ms, seen.latency.p95_ms) == (2.5, 2.4, 2.8)
    assert seen.gpu is not None
    assert (seen.gpu.mean_ms, seen.percentiles_ms[99.0], seen.throughput_per_s) == (2.2, 3.5, 400.5)
    with pytest.raises(DataError, match="twice"):
        trtexec.parse(outputs.TRTEXEC * 2)
    with pytest.raises(DataError, match="trtexec failed"):
        trtexec.parse("&&&& RUNNING TensorRT.trtexec\n&&&& FAILED TensorRT.trtexec [TensorRT v8602]\n")
    with pytest.raises(DataError, match="did not end"):
        trtexec.parse("&&&& RUNNING TensorRT.trtexec\n[I] Building engine\n")


def test_executorch() -> None:
    kind, seen = parsers.parse(outputs.EXECUTORCH.encode())
    assert kind == "executorch"
    assert (seen.model, seen.backend, seen.mean_ms, seen.load_ms) == ("mv2", "xnnpack", 9.25, 27.5)
    assert (seen.device, seen.system) == ("samsung SM-S926U1", "Android 14")
    old = executorch.parse(
        '[{"actual": 24.5, "arch": "SM-S901U1 / 12", "benchmarkModel": {"backend": "", "name": "llama2"}, "device": "samsung", '
        '"metric": "token_per_sec", "target": 0}]'
    )
    assert (old.decode_tokens_per_s, old.device) == (24.5, "samsung SM-S901U1 / 12")
    for text, message in (
        (outputs.EXECUTORCH.replace('"actualValue":0.0', '"actualValue":32.0'), "could not be loaded: status 32"),
        (outputs.EXECUTORCH.replace('"mv2"', '"mv3"', 1), "several models"),
        (outputs.EXECUTORCH.replace("9.25", "0").replace("27.5", "0"), "no figure above zero"),
        ("[]", "not ExecuTorch"),
    ):
        with pytest.raises(DataError, match=message):
            executorch.parse(text)


def test_xctest_of_an_app_and_of_linux() -> None:
    app = outputs.XCTEST.replace("[Clock Monotonic Time, s]", "[Memory Peak Physical (My App), kB]")
    seen = xctest.parse("/Users/me/T.swift:19: " + app)[0]
    assert (seen.metric, seen.unit, seen.values_ms) == ("Memory Peak Physical (My App)", "kB", None)
    linux = outputs.XCTEST.replace("-[Tests.Bench testForward]", "Bench.testForward").replace("Clock Monotonic Time, s",
        "Time, seconds")  # fmt: skip
    assert xctest.parse(linux)[0].values_ms == (4, 5, 6)


def test_mlperf_among_other_lines() -> None:
    log = "2022-12-06 16:51:55,731 INFO MainThread - unload_query_samples: Unloaded\n" + outputs.MLPERF
    assert mlperf.parse(log) == mlperf.parse(outputs.MLPERF)
