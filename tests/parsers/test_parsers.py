"""Every parser on what its tool prints: recorded outputs, and forms of other versions."""

from __future__ import annotations

import json
from pathlib import Path

import outputs
import pytest

from edgedistill import parsers
from edgedistill.errors import DataError, SpecError
from edgedistill.parsers import (
    app_run,
    batterystats,
    benchmark_model,
    devicectl,
    dumpsys_battery,
    dumpsys_thermal,
    litert_benchmark,
    litert_lm,
    llama_bench,
    mlperf,
    odpm,
    op_profile,
    powermetrics,
    xctest,
)

RECORDED = Path(__file__).parent / "recorded"
FILES = sorted(path for path in RECORDED.iterdir() if path.suffix != ".md" or path.name.startswith("x86"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_recorded_outputs_are_recognized(path: Path) -> None:
    wanted = {"x86": "llama_bench", "aar": "llama_bench", "lit": "litert_benchmark", "iph": "app_run"}
    kind, value = parsers.read(path)
    assert kind == wanted.get(path.name[:3], "litert_lm" if path.suffix == ".log" else "app_run")
    assert value


@pytest.mark.parametrize("kind", outputs.ALL)
def test_forms_are_recognized(kind: str, tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "out.txt").write_bytes(outputs.ALL[kind].replace("\n", "\r\n").encode(encoding))
        assert parsers.read(tmp_path / "out.txt")[0] == kind


def test_every_parser_has_a_form() -> None:
    binary = {"protobuf", "perfetto"}
    modules = {path.stem for path in Path(parsers.__file__).parent.glob("[a-z]*.py")} - binary
    assert set(parsers.kinds()) == modules
    assert modules == {*outputs.ALL, "llama_bench", "litert_benchmark", "litert_lm", "app_run"}


def test_benchmark_model() -> None:
    seen = benchmark_model.parse(outputs.BENCHMARK + outputs.PROFILE)
    assert seen.inference is not None
    assert (seen.inference.count, seen.inference.p50_ms, seen.inference.p95_ms) == (50, 40.95, 42.8)
    assert (seen.inference.mean_ms, seen.inference.min_ms, seen.inference.max_ms) == pytest.approx(
        (41.0052, 40.1, 43.9)
    )
    assert seen.warmup is not None
    assert seen.warmup.count == 12
    assert (seen.init_ms, seen.first_inference_ms, seen.model_size_mb) == (41.75, 52.0, 2.5)
    assert seen.peak_memory_mb == pytest.approx(40 * 1.048576)
    assert seen.overall_memory_mb == pytest.approx(25 * 1.048576)
    assert seen.delegated[0].nodes == 31
    assert [item.unit for item in seen.placement] == ["cpu (XNNPACK)", "cpu"]
    assert seen.placement[0].time_ms == pytest.approx(0.9)
    assert seen.placement[0].time_share == pytest.approx(0.9)


@pytest.mark.parametrize(
    "prefix",
    ["", "INFO: ", "05-30 15:16:44.857  3380  3380 I tflite  : ", "I/tflite  ( 3380): ",
     "2026-05-30 15:16:44.857 3380-3390/org.tensorflow.lite.benchmark I/tflite: ",
     "2026-05-30 15:16:44.857  3380-3390  tflite  org.tensorflow.lite.benchmark  I  ",
     "I0530 15:16:44.857000    3380 benchmark_tflite_model.cc:745] "],
)  # fmt: skip
def test_prefixes_of_logs(prefix: str) -> None:
    lines = [line.removeprefix("INFO: ") for line in outputs.BENCHMARK.splitlines()]
    seen = benchmark_model.parse("\r\n".join(prefix + line for line in lines))
    assert seen == benchmark_model.parse(outputs.BENCHMARK)


def test_benchmark_model_of_old_and_odd_builds() -> None:
    first = "count=1 curr=905463\n"
    old = "Average inference timings in us: Warmup: 905463, Init: 614333, Inference: 1.24027e+06\n"
    run = benchmark_model.parse(f"{first}count=50 first=1 curr=2 min=1 max=2000000 avg=1.24027e+06 std=15\n{old}")
    assert run.inference is not None
    assert run.inference.mean_ms == pytest.approx(1240.27)
    assert run.inference.p95_ms is None
    assert run.warmup is not None
    assert (run.warmup.count, run.warmup.mean_ms, run.warmup.p50_ms, run.warmup.std_ms) == (1, 905.463, 905.463, 0.0)
    same = benchmark_model.parse(first + "count=10 curr=30(all same)\n")
    assert same.inference is not None
    assert (same.inference.min_ms, same.inference.max_ms, same.inference.mean_ms) == (0.03, 0.03, 0.03)
    only = benchmark_model.parse(old)
    assert only.inference is not None
    assert (only.inference.count, only.inference.mean_ms) == (None, 1240.27)
    first_version = benchmark_model.parse(
        "Average inference timings in us: Warmup: 92374.7, Init: 9213, no stats: 90221.5"
    )
    assert first_version.inference is not None
    assert first_version.inference.mean_ms == pytest.approx(90.2215)
    comma = benchmark_model.parse("Inference timings in us: Init: 614,5, First inference: 90,25, Inference (avg): 81,5")
    assert (comma.init_ms, comma.first_inference_ms) == (0.6145, 0.09025)
    memory = benchmark_model.parse("Peak memory footprint (MB): init=2.5 overall=20.5\n")
    assert (memory.inference, memory.init_memory_mb) == (None, pytest.approx(2.5 * 1.048576))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("INFO: STARTING!\nERROR: Failed to load model x.tflite\n", "did not end: .*Failed to load model"),
        ("INFO: STARTING!\nINFO: Loaded model\n", "did not end; its last line is 'Loaded model'"),
        ("count=12 first=5 curr=4 min=4 max=5 avg=4.5 std=1\n", "only one 'count=' line"),
        (outputs.BENCHMARK + outputs.BENCHMARK, "holds 2 runs"),
        (outputs.BENCHMARK.replace("avg=41005.2", "avg=51005.2"), "parts of different runs"),
        (outputs.BENCHMARK.replace("avg=41005.2", "avg=-nan"), "no number"),
        (outputs.BENCHMARK.replace("Inference (avg): 41005.2", ""), "without the average"),
    ],
)
def test_benchmark_model_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        benchmark_model.parse(text)


def test_op_profile_as_csv_and_delegates() -> None:
    rows = op_profile.parse(outputs.PROFILE_CSV)
    assert [(row.kind, row.name, row.time_ms) for row in rows] == [
        ("TfLiteGpuDelegateV2", "[a, b]:0", 9.0), ("SOFTMAX", "[probabilities]:1", 1.0)]  # fmt: skip
    applied = op_profile.delegations([
        "INFO: Replacing 30 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 partitions.",
        "Explicitly applied NNAPI delegate, and the model graph will be partially executed by the delegate w/ 44 "
        "delegate kernels.",
    ])  # fmt: skip
    assert (applied[0].nodes, applied[0].of_nodes, applied[0].complete) == (30, None, False)
    assert (applied[1].delegate, applied[1].partitions, applied[1].complete) == ("NNAPI", 44, False)
    placed = op_profile.placement(rows, applied[:1])
    assert [(item.unit, item.operators, item.time_share) for item in placed] == [("gpu", 30, 0.9), ("cpu", 1, 0.1)]


def test_an_operator_is_not_placed_by_the_name_of_its_tensor() -> None:
    row = op_profile.Operator(kind="CONV_2D", name="[model/gpu_block/conv]:3", time_ms=1.0, calls=1)
    assert op_profile.unit_of(row) == "cpu"


def test_battery() -> None:
    seen = dumpsys_battery.parse(outputs.BATTERY)
    assert (seen.level_percent, seen.status, seen.powered_by, seen.charging) == (64.0, 2, ("USB",), True)
    assert (seen.voltage_mv, seen.temperature_celsius, seen.charge_uah, seen.current_ma) == (4012, 31.8, 2810000, 812)
    assert not dumpsys_battery.parse(outputs.UNPLUGGED).charging
    assert dumpsys_battery.parse("  status: Discharging\n  level: 5\n  scale: 10\n").level_percent == 50
    assert dumpsys_battery.parse("  status: 3\n  level: 5\n  voltage: 4\n").voltage_mv == 4000
    for text in ("level: 5\n", "Can't find service: battery\n", "status: 9\nlevel: 5\n", "status: 2\nlevel: 500\n"):
        with pytest.raises(DataError):
            dumpsys_battery.parse(text)


def test_thermal_takes_current_values_and_the_services_status() -> None:
    seen = dumpsys_thermal.parse(outputs.THERMAL)
    assert (seen.status, seen.temperatures_celsius["CPU0"], seen.hottest("cpu")) == (1, 58.250004, 61.5)
    assert "TPU" not in seen.temperatures_celsius
    alone = outputs.THERMAL.replace("Thermal Status: 1\n", "")
    assert dumpsys_thermal.parse(alone).status == 2
    cut = outputs.THERMAL.partition("HAL Ready")[0]
    with pytest.raises(DataError, match="cut off before the current ones"):
        dumpsys_thermal.parse(cut)
    cached = cut + "HAL Ready: false\n"
    assert dumpsys_thermal.parse(cached).temperatures_celsius == {"SKIN": 31.0, "CPU0": 30.0}
    for text in ("Can't find service: thermalservice\n", "Thermal Status: 9\n"):
        with pytest.raises(DataError):
            dumpsys_thermal.parse(text)


def test_rails_are_matched_by_name() -> None:
    later = "t=201000\nCH0(T=201000)[S3M_VDD_CPUCL1], 7000500\nCH1(T=201000)[S2M_VDD_CPUCL2], 5002000\n"
    spent = odpm.difference_mj(odpm.parse(outputs.RAILS), odpm.parse(later))
    assert spent == {"S2M_VDD_CPUCL2": 2.0, "S3M_VDD_CPUCL1": 0.5}
    with pytest.raises(DataError, match="restarted"):
        odpm.difference_mj(odpm.parse(later), odpm.parse(outputs.RAILS))
    for text in ("t=5\n", "t=5\nCH0(T=5)[A], x\n", "t=5\nCH0(T=5)[A], 1\nCH1(T=5)[A], 2\n"):
        with pytest.raises(DataError):
            odpm.parse(text)


def test_llama_bench_says_the_same_in_every_form() -> None:
    seen = {path.suffix: llama_bench.parse(path.read_text()) for path in RECORDED.glob("x86_64*")}
    assert set(seen) == {".json", ".jsonl", ".csv", ".md", ".sql"}
    for tests in seen.values():
        assert [(test.kind, test.n_prompt, test.n_gen, test.threads, test.backends) for test in tests] == [
            ("prefill", 64, 0, 1, "CPU"), ("decode", 0, 32, 1, "CPU")]  # fmt: skip
        assert all(test.model == "llama ?B Q8_0" and test.build == "Debian (11669)" for test in tests)
    assert seen[".json"][0].samples_ns == (2787346, 2769540, 2699646, 2733276, 2725664)
    assert seen[".csv"][0].samples_ns == ()
    assert seen[".md"][1].tokens_per_s == 11581.12
    assert seen[".md"][1].std_tokens_per_s == 2140.24


def test_llama_bench_of_other_versions() -> None:
    table = (
        "ggml_opencl: selecting platform: 'QUALCOMM Snapdragon(TM)'\n"
        "| model | size | params | backend | ngl | threads | fa | dev | test | t/s |\n"
        "| --- | ---: | ---: | --- | --: | --: | --: | --- | ---: | ---: |\n"
        "| llama 1B Q4_0 | 727.75 MiB | 1.24 B | OpenCL | 99 | 6 | 1 | GPU0 | pp512 @ d1024 | 700.06 ± 2.00 |\n"
        "| llama 1B Q4_0 | 727.75 MiB | 1.24 B | OpenCL | 99 | 6 | 1 | GPU0 | pp512+tg128 | 26.11 Â± 1.26 |\n"
        "| llama 1B Q4_0 | 727.75 MiB | 1.24 B | OpenCL | 99 | 6 | 1 | GPU0 | pp 512 | 12.5 |\n\nbuild: 0e2b (10211)\n"
    )
    tests = llama_bench.parse(table)
    assert [(test.kind, test.n_depth, test.tokens_per_s) for test in tests] == [
        ("prefill", 1024, 700.06), ("both", 0, 26.11), ("prefill", 0, 12.5)]  # fmt: skip
    old = [
        {"build_commit": "abc", "build_number": 1500, "n_prompt": 512, "n_gen": 0, "avg_ns": 1024000000, "cuda": False}
    ]
    assert llama_bench.parse("main: starting\n" + json.dumps(old, indent=2) + "\nend\n")[0].tokens_per_s == 500
    one = '[{"n_prompt": 0, "n_gen": "16", "avg_ts": 1.5e+01, "samples_ns": [1066666666]}]'
    assert llama_bench.parse(one)[0].samples_ns == (1066666666,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("error: unable to load model\n", "no test of llama-bench"),
        ('[\n  {\n    "n_prompt": 64,\n', "not whole JSON"),
        ("[]", "no test"),
        ('[{"n_prompt": 0, "n_gen": 0, "avg_ts": 5}]', "of no tokens"),
        ('[{"n_prompt": 8, "n_gen": 0, "avg_ts": 0}]', "without a speed"),
        ('[{"n_prompt": 8, "avg_ts": NaN}]', "NaN"),
        ('[{"n_prompt": 8, "avg_ts": 5, "samples_ns": [0]}]', "not above zero"),
        ("| model | test | t/s |\n| --- | --- | --- |\n| x | pp64 |\n", "cut off"),
        ("| model | test | t/s |\n| --- | --- | --- |\n| x | pp64 | failed |\n", "no result"),
    ],
)
def test_llama_bench_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        llama_bench.parse(text)


def test_litert_benchmark_says_the_same_in_both_forms() -> None:
    told = [
        litert_benchmark.parse((RECORDED / f"litert-benchmark_x86_64_net_i8.{end}").read_text())
        for end in ("json", "txt")
    ]
    assert told[0].inference == told[1].inference
    assert (told[0].inference.count, told[0].inference.p50_ms, told[0].init_ms) == (50, 0.03, 13.53)
    assert [item.first_inference_ms for item in told] == [0.17, 0.17]
    assert (told[0].threads, told[0].accelerators, told[0].fully_accelerated) == (1, ("CPU",), True)
    for text in ("{}", '{"latency": {}}', '{"latency": {"avg_ms": 0, "median_ms": 0}}',
                 '{"latency": {"avg_ms": 1, "num_runs": 0}}', "Inference (avg): x ms", "{"):  # fmt: skip
        with pytest.raises(DataError):
            litert_benchmark.parse(text)


def test_litert_lm() -> None:
    text = (RECORDED / "pixel_litert-lm-cpu_litert-lm.log").read_text()
    seen = litert_lm.parse(text)
    assert seen.decode_turns[0].tokens_per_s == pytest.approx(13.62, abs=0.01)
    assert seen.prefill_turns[0].tokens_per_s == pytest.approx(10.72, abs=0.01)
    assert (seen.first_token_ms, seen.init_ms, seen.exit_code) == (1940.0, 2579.35, 0)
    assert seen.peak_rss_mb is not None
    assert seen.median_rss_mb is not None
    assert 2000 < seen.median_rss_mb <= seen.peak_rss_mb < 2500
    with pytest.raises(DataError, match="ended with 137"):
        litert_lm.parse(text.replace("EXIT_CODE=0", "EXIT_CODE=137"))
    with pytest.raises(DataError, match="no finished turn"):
        litert_lm.parse(text.partition("  Prefill Turns")[0])
    assert litert_lm.duration_s("1m2.5s") == 62.5
    assert litert_lm.duration_s("135.376us") == pytest.approx(135.376e-6)


def test_runs_of_apps() -> None:
    phone = app_run.parse((RECORDED / "iphone_benchapp_energy_llamacpp.json").read_text())
    assert (phone.device, phone.charging, phone.thermal_last) == ("iPhone18,1", False, "serious")
    assert phone.sustained_ratio is not None
    assert phone.sustained_ratio < 0.7
    assert phone.power_w == pytest.approx(9.77, abs=0.01)
    assert phone.power_step_w == pytest.approx(0.49, abs=0.01)
    pixel = app_run.parse((RECORDED / "pixel_litert-lm-cpu_litert-lm.json").read_text())
    assert (pixel.charging, pixel.power_w, pixel.decode_tokens_per_s) == (True, None, 13.62)
    for text in ("{}", '{"device": {}, "metrics": {}}', '{"device": {}, "metrics": {"decodeTokensPerSecond": "x"}}',
                 '{"device": {}, "metrics": {}, "conditions": {"exitCode": 137}}'):  # fmt: skip
        with pytest.raises(DataError):
            app_run.parse(text)


def test_the_others() -> None:
    run = mlperf.parse(outputs.MLPERF)
    assert (run.valid, run.queries, run.percentiles_ms[90.0], run.max_ms) == (False, 2048, 1.9, 9.0)
    assert run.reasons == ("min duration satisfied: NO",)
    with pytest.raises(DataError, match="single stream only"):
        mlperf.parse("Scenario : Offline\nResult is : VALID\nSamples per second: 100\n")
    stats = batterystats.parse(outputs.CHECKIN)
    assert (stats.capacity_mah, stats.used_mah, stats.apps_mah, stats.steps) == (4485, 120.5, {10123: 1.25}, 2)
    sample = powermetrics.parse(outputs.POWERMETRICS)[0]
    assert (sample.power_mw["combined"], sample.elapsed_ms, sample.thermal_pressure) == (930, 1010.5, "Nominal")
    test = xctest.parse(outputs.XCTEST)[0]
    assert (test.suite, test.test, test.metric, test.values_ms) == (
        "Tests.Bench",
        "testForward",
        "Clock Monotonic Time",
        (4, 5, 6),
    )
    with pytest.raises(DataError, match="cut off"):
        xctest.parse(outputs.XCTEST[:120])
    devices = devicectl.parse(outputs.DEVICECTL)
    assert [(item.model, item.ready) for item in devices] == [("iPhone 16", True), ("", False)]
    with pytest.raises(DataError, match=r"devicectl failed: .*tunnel"):
        devicectl.parse('{"info": {"outcome": "failed"}, "error": {"code": 1, "text": "no tunnel"}}')


def test_a_file_of_no_known_tool(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("buffers { size_kb: 16384 }\n")
    with pytest.raises(DataError, match=r"of no known tool .*begins with 'buffers"):
        parsers.read(tmp_path / "x")
    with pytest.raises(SpecError, match="did you mean 'odpm'"):
        parsers.read(tmp_path / "x", "odmp")
    with pytest.raises(SpecError, match="cannot be read"):
        parsers.read(tmp_path / "none")
