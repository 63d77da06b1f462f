"""One build in every format: the bundle, its proof, and what is said of each file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgedistill import catalog
from edgedistill.errors import EdgedistillError, ForeignFile, SpecError, VerificationError
from edgedistill.pipeline import recheck, replay
from edgedistill.store import bytes_of, digest_of, sha256_of

FORMATS = ("tflite", "onnx", "coreml", "gguf")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path, cli: Callable[..., Any]) -> Path:
    out = tmp_path_factory.mktemp("formats") / "bundle"
    done = cli(
        "build", "--target", "pixel8", "--profile", "tiny", "--store", tiny_store, "--out", out,
        "--format", ",".join(FORMATS), "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def manifest_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return loaded


def test_every_format_is_a_verified_artifact(built: Path) -> None:
    manifest = manifest_of(built)
    assert [item["format"] for item in manifest["artifacts"]] == list(FORMATS)
    for item in manifest["artifacts"]:
        path = built / item["path"]
        assert path.suffix == catalog.constants("exporters", item["format"])["SUFFIX"]
        parity = manifest["parity"][item["format"]]
        assert (parity["codes_max_difference"], parity["scales_max_difference"]) == (0, 0)
        assert parity["argmax_agreement"] >= 0.99
        assert item["size_mb"] > 0
        assert item["audit"]["operators"]
        assert item["audit"]["runtime_min"]
    golden = json.loads((built / "golden.json").read_text())
    assert all(list(sample["answers"]) == sorted(FORMATS) for sample in golden)
    classes = {"TextClassifier.kt", "OnnxTextClassifier.kt", "TextClassifier.swift", "LlamaTextClassifier.swift"}
    assert {path.name for path in built.glob("*.kt")} | {path.name for path in built.glob("*.swift")} == {
        *classes, "WordPiece.kt", "WordPiece.swift",
    }  # fmt: skip


def test_the_bundle_verifies_and_its_gate_judges_every_file(built: Path) -> None:
    opened = recheck.open_bundle(built)
    found = replay.verify(opened)
    assert found.golden == 16 * len(FORMATS)
    names = [check.name for check in recheck.gate_again(opened, {"size_mb": 1.0}).checks]
    assert "size_mb" in names
    assert all(f"{name}: size_mb" in names for name in FORMATS[1:])
    failing = recheck.gate_again(opened, {"size_mb": 1e-4})
    assert [c.verdict for c in failing.checks if c.name.endswith("size_mb")] == ["FAIL"] * len(FORMATS)


@pytest.mark.parametrize("name", ["onnx", "gguf"])
def test_every_format_that_runs_here_is_timed_and_its_answers_compared(
    built: Path, cli: Callable[..., Any], name: str
) -> None:
    done = cli("bench", built, "--format", name, "--launches", "1", "--json")
    assert done.returncode == 0, done.stderr
    for seen in json.loads(done.stdout).values():
        assert seen["latency_p50_ms"] > 0
        assert seen["measurement"]["outputs"]["samples"] > 0
        assert (
            seen["measurement"]["fingerprint"]["runtime"] == {"onnx": "onnxruntime", "gguf": "llama-cpp-python"}[name]
        )
    refused = cli("bench", built, "--format", "coreml")
    assert refused.returncode == 2
    assert "runs tflite, onnx, gguf, litertlm files only" in refused.stderr


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_was_changed_is_named(bundle: Path, name: str) -> None:
    item = next(item for item in manifest_of(bundle)["artifacts"] if item["format"] == name)
    path = bundle / item["path"]
    file = path if path.is_file() else path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(VerificationError, match=f"{file.name}: changed"):
        replay.verify(recheck.open_bundle(bundle))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_off_or_foreign_is_no_model(bundle: Path, name: str) -> None:
    """Whether or not the manifest vouches for it: the way out is another file, not another build."""
    item = next(item for item in manifest_of(bundle)["artifacts"] if item["format"] == name)
    path = bundle / item["path"]
    for file in (path,) if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file()):
        whole = file.read_bytes()
        for content in (b"", whole[:100], whole[: len(whole) // 2], b"PK\3\4 another program's" * 50):
            file.write_bytes(content)
            with pytest.raises(ForeignFile, match=path.name) as caught:
                recheck.check_files(recheck.open_bundle(bundle))
            assert caught.value.exit_code == 2
            manifest = manifest_of(bundle)
            manifest["files"][file.relative_to(bundle).as_posix()] = sha256_of(file)
            told = next(item for item in manifest["artifacts"] if item["format"] == name)
            told["sha256"], told["size_mb"] = digest_of(path), bytes_of(path) / 1e6
            signed = bundle / "manifest.json"
            before = signed.read_bytes()
            signed.write_text(json.dumps(manifest))
            with pytest.raises(ForeignFile):
                replay.verify(recheck.open_bundle(bundle))
            signed.write_bytes(before)
        file.write_bytes(whole)


def test_a_file_slipped_into_a_package_is_refused(bundle: Path) -> None:
    (bundle / "model.mlpackage" / "Data" / "extra.bin").write_bytes(b"x")
    with pytest.raises(SpecError, match=r"extra\.bin, which the manifest does not list"):
        recheck.check_files(recheck.open_bundle(bundle))


def test_an_unknown_or_repeated_format_is_refused(cli: Callable[..., Any]) -> None:
    for given, told in (("tflit", "did you mean 'tflite'"), ("onnx,onnx", "given twice"), ("", "no such format")):
        done = cli("plan", "--target", "pixel8", "--profile", "tiny", "--format", given)
        assert done.returncode == 2
        assert told in done.stderr


def test_a_format_whose_packages_are_missing_is_refused_before_anything_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgedistill.pipeline import proofs

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EdgedistillError, match=r"pip install 'edgedistill\[coreml\]'"):
        proofs.require(["coreml"])
