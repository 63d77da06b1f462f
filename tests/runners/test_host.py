"""The host runner on a real .tflite file and real processes."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from edgedistill.errors import InfrastructureError, SpecError, StageError
from edgedistill.runners import How, Job, _launches, host
from edgedistill.specs import Provenance

LENGTHS = (8, 16)
QUICK = host.Timing(warmup_s=0.02, runs_min=50, time_s=0.05, runs_max=400)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token classifier with one signature per length, as the exporter writes it."""
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litert_torch
        import torch

        class Tiny(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = torch.nn.Embedding(500, 64)
                self.head = torch.nn.Linear(64, 10)

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
                mask = attention_mask.float().unsqueeze(-1)
                return {"logits": self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))}

        torch.manual_seed(0)
        convert: Any = litert_torch
        for length in LENGTHS:
            ones = torch.ones(1, length, dtype=torch.int32)
            sample = {"input_ids": ones, "attention_mask": ones}
            convert = convert.signature(f"length_{length}", Tiny().eval(), sample_kwargs=sample)
        path = tmp_path_factory.mktemp("model") / "tiny.tflite"
        convert.convert().export(str(path))
    return path


def inputs(length: int = 8, samples: int = 5) -> dict[str, list[list[int]]]:
    ids = [[(7 * row + column) % 499 + 1 for column in range(length)] for row in range(samples)]
    return {"input_ids": ids, "attention_mask": [[1] * length for _ in range(samples)]}


def job(model: Path, length: int = 8) -> Job:
    return Job(model=model, signature=f"length_{length}", inputs=inputs(length))


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Replace the measuring script by `code`, which still runs as a process of its own."""
    program = folder / "program"
    program.mkdir()
    (program / "__init__.py").touch()
    (program / "__main__.py").write_text(f"import json, os, signal, sys\n{code}\n")
    monkeypatch.setattr(_launches, "PROGRAM", program)


def test_measure(model: Path) -> None:
    seen = host.measure(model, signature="length_8", inputs=inputs(), launches=2, timing=QUICK)
    assert seen.provenance is Provenance.MEASURED
    assert len(seen.launch_counts) == len(seen.launch_medians_ms) == 2
    assert sum(seen.launch_counts) == len(seen.samples_ms) >= 2 * QUICK.runs_min
    assert all(0 < value < 100 for value in seen.samples_ms)
    assert seen.latency_p50_ms <= seen.latency_p95_ms
    assert seen.first_inference_ms >= min(seen.samples_ms)
    assert seen.load_ms > 0
    assert seen.peak_memory_mb > seen.baseline_memory_mb > 5
    assert seen.runtime.startswith("ai-edge-litert ")
    assert {"cpu", "cores", "kernel", "load_average_max", "governor"} <= seen.context.keys()


def test_launches_are_interleaved_and_reported(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    launch = host._launch
    monkeypatch.setattr(
        host, "_launch", lambda name, *rest, **more: (order.append(name), launch(name, *rest, **more))[1]
    )
    seen = host.measure_many({"a": job(model), "b": job(model, 16)}, launches=2, timing=QUICK)
    assert order == ["a", "b", "b", "a"]
    assert seen["a"].signature == "length_8"
    assert seen["b"].signature == "length_16"
    assert seen["a"].artifact_sha256 == seen["b"].artifact_sha256


def test_what_others_take_of_this_machine_is_told_and_counts_only_if_asked(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = host.Timing(warmup_s=0.0, runs_min=50, time_s=0.4, runs_max=10**6)
    monkeypatch.setattr("edgedistill.runners._fitness.OTHERS_MAX", -1.0)
    noted = host.measure_many({"m": job(model)}, launches=1, timing=long)["m"]
    share = noted.launches[0].others_share
    assert share is not None
    assert 0 <= share <= 1
    assert noted.context["others_share_max"] == pytest.approx(share, abs=1e-3)
    assert noted.unfit == ()
    marked = host.measure_many({"m": job(model)}, launches=1, timing=long, how=How(unfit="mark"))["m"]
    assert "other programs took" in marked.unfit[0]
    with pytest.raises(InfrastructureError, match="this machine is not fit to be measured: other programs"):
        host.measure_many({"m": job(model)}, launches=1, timing=long, how=How(unfit="refuse"))


def test_a_batch_axis_may_be_given(model: Path) -> None:
    nested = {name: [[sample] for sample in samples] for name, samples in inputs().items()}
    assert host.measure(model, signature="length_8", inputs=nested, launches=1, timing=QUICK).samples_ms


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signature": "length_99"}, "no signature 'length_99'; it has: length_16, length_8"),
        ({"inputs": {"ids": [[1] * 8]}}, "which wants"),
        ({"inputs": inputs(16)}, r"shape \[16\], the file wants \[1, 8\]"),
        ({"inputs": {**inputs(), "input_ids": [[0.5] * 8] * 5}}, "int32 cannot hold"),
        ({"inputs": {**inputs(), "input_ids": [[2**40] * 8] * 5}}, "int32 cannot hold"),
        ({"inputs": {**inputs(), "input_ids": [[1] * 8]}}, "same number of samples"),
        ({"inputs": {}}, "same number of samples"),
        ({"threads": 0}, "threads"),
        ({"launches": 0}, "launches"),
    ],
)
def test_a_wrong_job_is_a_spec_error(model: Path, change: dict[str, Any], message: str) -> None:
    asked = {"signature": "length_8", "inputs": inputs(), "launches": 1, "timing": QUICK, **change}
    with pytest.raises(SpecError, match=message):
        host.measure(model, **asked)


def test_a_missing_file_is_a_spec_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        host.measure(tmp_path / "none.tflite", signature="s", inputs=inputs())


@pytest.mark.parametrize("content", [b"", b"not a model at all" * 50])
def test_a_file_that_does_not_load_is_a_stage_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    with pytest.raises(StageError, match=r"cannot load or run broken.tflite \[s\]: .*Error"):
        host.measure(path, signature="s", inputs=inputs(), launches=1, timing=QUICK)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_half_a_file_is_a_stage_error(model: Path, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "half.tflite"
    content = model.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(StageError, match=r"half\.tflite"):
        host.measure(path, signature="length_8", inputs=inputs(), launches=1, timing=QUICK)


def test_a_crash_of_the_runtime_is_a_stage_error(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real crash: the runtime checks no token id against the table it reads."""
    stand_in(monkeypatch, tmp_path, "sys.stderr.write('last word\\n'); sys.stderr.flush(); os.abort()")
    with pytest.raises(StageError, match=r"crashed on tiny.tflite \(SIGABRT\): last word"):
        host.measure_many({"a": job(model)}, launches=1)


def test_a_kill_from_outside_is_not_the_models_fault(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(InfrastructureError, match="SIGKILL"):
        host.measure_many({"a": job(model)}, launches=1)


def test_timeout(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(
        monkeypatch, tmp_path, "sys.stderr.write('stuck here\\n'); sys.stderr.flush(); import time; time.sleep(60)"
    )
    with pytest.raises(InfrastructureError, match=r"did not end within 1 s: stuck here"):
        host.measure_many({"a": job(model)}, launches=1, timing=host.Timing(timeout_s=1.0))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("pass", "without an answer"),
        ("open(sys.argv[2], 'w').write('{\"nonce\": ')", "without an answer"),
        ("open(sys.argv[2], 'w').write('{}')", "incomplete"),
        ("fields = 'runtime load_ns first_ns measured_ns meters outputs tokens_per_s sustained baseline_kb '\n"
         "fields = (fields + 'peak_kb involuntary_switches').split()\n"
         "answer = dict.fromkeys(fields, 1) | {'samples_ns': [1], 'nonce': 'of another launch'}\n"
         "json.dump(answer, open(sys.argv[2], 'w'))", "another launch"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_whole_is_no_answer(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    stand_in(monkeypatch, tmp_path, code)
    with pytest.raises(InfrastructureError, match=message):
        host.measure_many({"a": job(model)}, launches=1)


@pytest.mark.parametrize("bad", [{"runs_min": 0}, {"runs_min": 10, "runs_max": 5}, {"cap_s": 0}, {"timeout_s": 0}])
def test_a_timing_that_could_measure_nothing_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="timing needs"):
        host.Timing(**bad)  # type: ignore[arg-type]


def test_the_parent_does_not_load_the_runtime() -> None:
    import subprocess

    code = "import sys, edgedistill.runners.host; sys.exit(any(m in sys.modules for m in ('numpy', 'ai_edge_litert')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
