"""Decoders that are timed: by llama.cpp, LiteRT and LiteRT-LM, each as it is, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgedistill.errors import ForeignFile, SpecError
from edgedistill.pipeline.benching import TextSize
from edgedistill.pipeline.race import Place
from edgedistill.runners import Job, Timing, host
from edgedistill.runners._program.runtimes import JobError, Llama
from edgedistill.runners._program.texts import TEXTS, LiteRTDecoder
from edgedistill.specs import Measurement, Silent

HERE = Path(__file__).parent
QUICK = Timing(warmup_s=0.0, warmup_runs=1, runs_min=3, time_s=0.02, timeout_s=60.0)
RUNTIMES = {"gguf": "llama-cpp-python", "tflite": "ai-edge-litert", "litertlm": "litert-lm-api"}
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "tiny_decoder.json").read_text())
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, golden: dict[str, Any]) -> dict[str, Path]:
    """One decoder in every format that makes text; `make_decoder.py` wrote it."""
    begin, end = golden["model"]
    inner = tmp_path_factory.mktemp("decoder") / "tiny_decoder.tflite"
    inner.write_bytes((HERE / "tiny_decoder.litertlm").read_bytes()[begin:end])
    return {"gguf": HERE / "tiny_decoder.gguf", "litertlm": HERE / "tiny_decoder.litertlm", "tflite": inner}


def job(path: Path, prompt: int = 24, answer: int = 8) -> Job:
    return Job(path, f"prompt_{prompt}_answer_{answer}", {}, decode_tokens=answer, prompt_tokens=prompt)


def test_every_runtime_tells_how_fast_it_reads_and_writes(files: dict[str, Path]) -> None:
    found = host.measure_many({name: job(path) for name, path in files.items()}, launches=2, timing=QUICK)
    for name, seen in found.items():
        assert seen.runtime.startswith(RUNTIMES[name])
        assert set(seen.tokens_per_s) == {"prefill", "decode"}
        for launch in seen.launches:
            # a prompt of 24 tokens takes at least as long as it takes to read them; rates and times are of one clock
            assert launch.tokens_per_s["prefill"] > 24 / (3 * max(seen.samples_ms) / 1e3)
            assert launch.tokens_per_s["decode"] > 0
        assert min(seen.launch_counts) >= QUICK.runs_min
        assert seen.peak_memory_mb is not None
        assert seen.outputs is None
        assert (seen.context["prompt_tokens"], seen.context["decoded_tokens"]) == (24, 8)


@pytest.mark.parametrize("name", ["gguf", "tflite"])
def test_what_is_timed_is_the_students_answer(files: dict[str, Path], golden: dict[str, Any], name: str) -> None:
    """A prompt in pieces of 8, 8 and 2, its last token, caches handed on: what is timed is the text that is meant."""
    import numpy as np

    asked = {"model": str(files[name]), "threads": 1, "inputs": {}, "decode_tokens": 11, "prompt_tokens": 19}
    bound: Any = TEXTS[name](asked)
    prompt = bound.prompt(19)
    assert np.asarray(prompt["input_ids"]).reshape(-1).tolist() == golden["prompt"]
    for _ in range(2):  # the second text begins anew
        told = bound.turn(prompt, 11)
        same = 6 if name == "gguf" else 12  # llama.cpp rounds activations to int8: then two tokens are nearly as good
        assert bound.made[:same] == golden["answer"][:same]
        assert (told["prompt"], told["decoded"]) == (19, 11)
    assert told["first_ns"] >= told["read_ns"] > 0


def test_a_longer_answer_takes_longer_and_is_not_faster(files: dict[str, Path]) -> None:
    asked = {"model": str(files["tflite"]), "threads": 1, "inputs": {}, "decode_tokens": 64, "prompt_tokens": 8}
    bound = LiteRTDecoder(asked)
    short = min(bound.turn(bound.prompt(8), 4)["decode_ns"] for _ in range(5))
    long = min(bound.turn(bound.prompt(8), 64)["decode_ns"] for _ in range(5))
    assert long > 8 * short


def test_litert_lm_counts_its_tokens(files: dict[str, Path]) -> None:
    bound: Any = TEXTS["litertlm"]({"model": str(files["litertlm"]), "threads": 1})
    told = bound.turn(bound.prompt(24), 8)
    assert (told["prompt"], told["decoded"]) == (24, 8)
    assert told["first_ns"] == told["read_ns"] + told["decode_ns"] // 8


@pytest.mark.parametrize("name", ["gguf", "tflite", "litertlm"])
def test_a_text_that_does_not_fit_is_refused(files: dict[str, Path], cli: Cli, name: str) -> None:
    done = cli("bench", files[name], "--launches", 1, "--prompt-tokens", 120, "--answer-tokens", 20)
    assert done.returncode == (1 if name == "litertlm" else 2)  # LiteRT-LM does not say why it fails
    assert "140 tokens" in done.stderr or "does the bundle keep a prompt this long" in done.stderr


def test_an_answer_that_ends_early_is_told(files: dict[str, Path]) -> None:
    """LiteRT-LM stops where the caches end, without an error."""
    seen = host.measure_many({"m": job(files["litertlm"], 90, 20)}, launches=1, timing=QUICK)["m"]
    assert seen.context["prompt_tokens"] == 90
    assert 0 < float(seen.context["decoded_tokens"]) < 20


def test_a_file_that_makes_no_text_says_so(cli: Cli) -> None:
    done = cli("bench", HERE.parent / "devices" / "tiny_static.tflite", "--launches", 1)
    assert done.returncode == 2
    assert "it makes no text: it has length_8, and not decode and prefill" in done.stderr
    with pytest.raises(SpecError, match="takes texts"):
        host.measure_many({"a": Job(HERE / "tiny_decoder.litertlm", "x", {"input_ids": [[1]]})}, launches=1)


@pytest.mark.parametrize("name", ["gguf", "tflite", "litertlm"])
def test_a_decoder_that_is_cut_off_is_wrong_input(files: dict[str, Path], cli: Cli, tmp_path: Path, name: str) -> None:
    """LiteRT-LM ends its process on such a file; the others say little."""
    path = tmp_path / f"cut.{name}"
    path.write_bytes(files[name].read_bytes()[:5000])
    done = cli("bench", path, "--launches", 1)
    assert done.returncode == 2
    assert "Export it again" in " ".join(done.stderr.split())
    with pytest.raises(ForeignFile, match="the runtime"):
        Place("host", 1).measure({"a": TextSize().job(path, 1)}, 1, Silent())


def test_a_file_of_another_kind_is_no_decoder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x")
    for command in (("bench",), ("gate", "--baseline", tmp_path / "a.onnx")):
        done = cli(*command, tmp_path / "a.onnx")
        assert done.returncode == 2
        assert "no file that makes text; those are .gguf, .litertlm, .tflite" in " ".join(done.stderr.split())


def test_an_answer_of_a_gguf_decoder_is_compared(files: dict[str, Path], golden: dict[str, Any]) -> None:
    asked = Job(
        files["gguf"], "tokens", {"input_ids": [golden["prompt"]]}, decode_tokens=4,
        expected={"logits": [golden["logits"]]},
    )  # fmt: skip
    seen = host.measure_many({"m": asked}, launches=1, timing=QUICK)["m"]
    assert seen.outputs is not None
    assert seen.outputs.labels_agree == 1
    assert seen.outputs.max_abs_difference < 0.05 * seen.outputs.reference_max_abs  # llama.cpp's int8 activations
    assert set(seen.tokens_per_s) == {"prefill", "decode"}


def test_an_id_that_no_token_has_is_refused(files: dict[str, Path]) -> None:
    asked = {"model": str(files["gguf"]), "threads": 1, "inputs": {}, "decode_tokens": 2, "prompt_tokens": 4}
    bound = Llama(asked)
    import numpy as np

    with pytest.raises(JobError, match="from 0 to 149"):
        bound.turn({"input_ids": np.array([[150]])}, 1)


def test_a_measured_decoder_is_judged(files: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    """`bench FILE` to `gate FILE`: floors pass above and fail below, and a phone's line is not passed by this host."""
    out = tmp_path / "seen.json"
    done = cli("bench", files["gguf"], "--launches", 3, "--prompt-tokens", 24, "--answer-tokens", 8, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "reads" in done.stdout
    (name, told), *rest = json.loads(out.read_text()).items()
    assert (name, rest) == ("prompt_24_answer_8", [])
    seen = Measurement.decode(told["measurement"], "out")
    assert told["decode_tokens_per_s"] == seen.tokens_per_s["decode"]
    assert told["prefill_tokens_per_s"] == seen.tokens_per_s["prefill"]

    mine = tmp_path / "mine.toml"
    host_target = (Path(__file__).parents[2] / "targets" / "host.toml").read_text()
    head, _, tail = host_target.partition("[budget]")
    units = tail[tail.index("[[compute_units]]") :]
    mine.write_text(head.replace('name = "host"', 'name = "mine"') + "[budget]\ndecode_tokens_per_s = 1.0\n" + units)
    verdicts = {}
    for limits, code in (("first_token_ms=60000,prefill_tokens_per_s=1", 0), ("decode_tokens_per_s=1e12", 3)):
        judged = cli("gate", files["gguf"], "--target", mine, "--measured", out, "--budget", limits, "--json")
        assert judged.returncode == code, judged.stdout + judged.stderr
        verdicts |= {(code, item["name"]): item["verdict"] for item in json.loads(judged.stdout)["checks"]}
    assert verdicts == {
        (0, "first_token_ms"): "PASS", (0, "prefill_tokens_per_s"): "PASS", (0, "decode_tokens_per_s"): "PASS",
        (3, "decode_tokens_per_s"): "FAIL",
    }  # fmt: skip
    phone = cli("gate", files["gguf"], "--target", "pixel8", "--measured", out, "--budget", "decode_tokens_per_s=1")
    assert phone.returncode == 4
    assert "no Google Pixel 8 was measured" in phone.stderr
    other = cli("gate", files["litertlm"], "--target", mine, "--measured", out)
    assert other.returncode == 2
    assert "of another file" in other.stderr
    assert cli("gate", files["gguf"]).returncode == 2
    assert cli("gate", files["gguf"], "--target", mine, "--measured", out, "--aa").returncode == 2


@pytest.mark.parametrize("wrong", [("--format", "gguf"), ("--only", "x")])
def test_options_that_would_do_nothing_are_refused(files: dict[str, Path], cli: Cli, wrong: tuple[str, ...]) -> None:
    assert cli("bench", files["gguf"], *wrong).returncode == 2


def test_the_parent_loads_no_runtime_to_time_a_text(files: dict[str, Path]) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from edgedistill.runners import Job, Timing, host\n"
        f"job = Job(Path({str(files['litertlm'])!r}), 't', {{}}, decode_tokens=2, prompt_tokens=4)\n"
        "host.measure_many({'m': job}, launches=1, timing=Timing(runs_min=1, time_s=0.01, warmup_s=0.0))\n"
        "sys.exit(any(name in sys.modules for name in ('numpy', 'litert_lm', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
