"""`edgedistill verify` on bundles whose makers cannot be trusted: each lie is found, and said where."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.errors import DataError, VerificationError
from edgedistill.exporters.tflite import load
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.reading import names, parse, uses
from edgedistill.pipeline import executed, recheck, replay
from edgedistill.quant import FrozenStudent
from edgedistill.tasks import text_classification


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def signed(bundle: Path, name: str, **manifest: Any) -> None:
    """Make the manifest agree with a changed file, as somebody who wants to deceive would."""
    path = bundle / "manifest.json"
    found = json.loads(path.read_text()) | manifest
    found["files"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    for artifact in found["artifacts"]:
        if artifact["path"] == name:
            artifact["sha256"], artifact["size_mb"] = found["files"][name], (bundle / name).stat().st_size / 1e6
    path.write_text(json.dumps(found))


def rewired(bundle: Path, one: str, other: str, length: str = "") -> None:
    """Give two layers of the .tflite each other's weight and bias: every number is still there, under its own name.

    `length`: only in the graph of that signature.
    """
    path = bundle / "model.tflite"
    schema, model = parse(path)
    stored = names(model, path)
    for entry in model.signatureDefs:
        if length and entry.signatureKey.decode() != length:
            continue
        subgraph = model.subgraphs[entry.subgraphIndex]
        found = {use.name: use.operator for use in uses(schema, model, subgraph, stored) if use.name in (one, other)}
        first, second = found[one], found[other]
        kept = list(first.inputs)
        first.inputs = np.asarray([first.inputs[0], *second.inputs[1:]], np.int32)
        second.inputs = np.asarray([second.inputs[0], *kept[1:]], np.int32)
    path.write_bytes(Packer().pack(model))
    signed(bundle, "model.tflite")


def verify(bundle: Path, **options: Any) -> replay.Verified:
    return replay.verify(recheck.open_bundle(bundle), **options)


def test_verify_runs_the_held_out_rows_and_tells_structure_and_range(
    cli: Callable[..., Any], tiny_bundle: Path
) -> None:
    done = cli("verify", tiny_bundle, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == "held-out rows of builtin:banking5"
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    seen = found["formats"]["tflite"]
    assert seen["parity"]["rows"] == manifest["data"]["rows"]["held_out"]
    assert seen["parity"]["codes_max_difference"] == 0
    assert seen["parity"]["argmax_agreement"] == 1
    assert seen["accuracy"]["file"] == manifest["parity"]["tflite"]["accuracy_file"]
    assert seen["runtime_min"].startswith("TensorFlow Lite ")
    assert seen["operators"]["FULLY_CONNECTED"] == 14
    assert 1 < seen["fp16"]["largest_value"] < 65504
    assert any("GPU delegate" in risk for risk in seen["risks"])
    shown = cli("verify", tiny_bundle, "--rows", "5")
    for text in ("5, beside the frozen student", "mean KL", "same answer", "accuracy", "needs", "fp16 ends", "risk: "):
        assert text in shown.stdout


def test_two_layers_swapped_are_named_although_every_number_is_there(cli: Callable[..., Any], bundle: Path) -> None:
    rewired(bundle, "layers.0.query.weight", "layers.0.key.weight")
    done = cli("verify", bundle)
    assert done.returncode == 1
    assert "does not compute the frozen student" in done.stderr
    assert "first differs at the input of layers.0.output: max abs" in " ".join(done.stderr.split())


@pytest.mark.parametrize("length", ["length_8", "length_16"])
def test_a_fault_in_the_graph_of_one_length_is_found_though_the_rows_are_of_another(
    bundle: Path, tmp_path: Path, length: str
) -> None:
    """By one who also wrote golden.json anew, so that nothing in the bundle contradicts the file."""
    rewired(bundle, "layers.0.query.weight", "layers.0.key.weight", length)
    samples = json.loads((bundle / "golden.json").read_text())
    runner, labels = load(bundle / "model.tflite"), (bundle / "labels.txt").read_text().splitlines()
    for sample in samples:
        logits = text_classification.run_file(runner, sample["input_ids"])
        sample["answers"]["tflite"] |= {"logits": logits.tolist(), "label": labels[int(logits.argmax())]}
    (bundle / "golden.json").write_text(json.dumps(samples))
    signed(bundle, "golden.json")
    text = "my card" if length == "length_16" else "please tell me why the card that i asked for has not arrived yet"
    rows = tmp_path / "mine.jsonl"
    rows.write_text(json.dumps({"text": text, "label": labels[0]}) + "\n")
    for data in (str(rows), None):
        with pytest.raises(VerificationError, match=r"first differs at the input of layers\.0\.output"):
            verify(bundle, data=data)


def test_a_changed_tokenizer_file_is_found(bundle: Path) -> None:
    path = bundle / "tokenizer.json"
    changed = json.loads(path.read_text())
    words = changed["model"]["vocab"]
    a, b = list(words)[-2:]
    common = next(piece for piece in words if piece == "card")
    words[common], words[a] = words[a], words[common]
    assert b in words
    path.write_text(json.dumps(changed))
    with pytest.raises(VerificationError, match=r"tokenizer\.json: changed"):
        verify(bundle)
    signed(bundle, "tokenizer.json")
    with pytest.raises(VerificationError, match=r"tokenizer\.json: is not the tokenizer of the frozen student"):
        verify(bundle)


def test_what_an_app_reads_in_place_of_the_tokenizer_is_the_tokenizers(bundle: Path) -> None:
    """The code of the bundle reads vocab.txt and goes by preprocessing.json."""
    path = bundle / "vocab.txt"
    first, second, *rest = path.read_text().splitlines()
    sound = path.read_bytes()
    path.write_text("".join(f"{piece}\n" for piece in (second, first, *rest)))
    signed(bundle, "vocab.txt")
    with pytest.raises(VerificationError, match=r"vocab\.txt: does not list the pieces"):
        verify(bundle)
    path.write_bytes(sound)
    signed(bundle, "vocab.txt")
    path = bundle / "preprocessing.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lowercase": False}))
    signed(bundle, "preprocessing.json")
    with pytest.raises(VerificationError, match=r"preprocessing\.json: lowercase = False, and it is True"):
        verify(bundle)


def test_golden_samples_of_another_file_are_told_from_a_wrong_file(bundle: Path) -> None:
    path = bundle / "golden.json"
    samples = json.loads(path.read_text())
    samples[2]["answers"]["tflite"]["logits"][1] += 0.01
    path.write_text(json.dumps(samples))
    signed(bundle, "golden.json")
    with pytest.raises(VerificationError, match=r"a logit differs by 0\.01.* Each layer of the file computes"):
        verify(bundle)


def test_golden_samples_that_were_taken_away_are_missed(bundle: Path) -> None:
    path = bundle / "golden.json"
    samples = json.loads(path.read_text())
    path.write_text(json.dumps(samples[:-1]))
    signed(bundle, "golden.json")
    with pytest.raises(VerificationError, match=r"golden\.json: has 15 samples, a build of this profile 16"):
        verify(bundle, most_rows=5)


def test_a_length_that_the_file_no_longer_takes_is_missed(bundle: Path) -> None:
    """Its own graphs compute the student, and these rows fit the one that is left."""
    path = bundle / "model.tflite"
    _, model = parse(path)
    model.signatureDefs = [entry for entry in model.signatureDefs if entry.signatureKey == b"length_16"]
    path.write_bytes(Packer().pack(model))
    signed(bundle, "model.tflite")
    with pytest.raises(VerificationError, match="has the entry points length_16; its bundle has length_8, length_16"):
        verify(bundle, most_rows=5)


def test_a_model_that_its_code_does_not_find_is_told(bundle: Path) -> None:
    """Under another name, the code being what this version writes."""
    (bundle / "model.tflite").rename(bundle / "other.tflite")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["other.tflite"] = manifest["files"].pop("model.tflite")
    manifest["artifacts"][0]["path"] = "other.tflite"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match=r"none of its code .* names other\.tflite"):
        verify(bundle, most_rows=5)


def test_an_accuracy_that_the_file_does_not_have_is_found(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    parity = manifest["parity"]
    parity["tflite"]["accuracy_file"] = 0.99
    signed(bundle, "golden.json", parity=parity)
    with pytest.raises(VerificationError, match=r"says an accuracy of 99\.00% of model\.tflite, which has \d+\.\d+%"):
        verify(bundle)


def test_the_callers_rows_are_run_and_an_unknown_label_is_refused(bundle: Path, tmp_path: Path) -> None:
    labels = (bundle / "labels.txt").read_text().splitlines()
    rows = tmp_path / "mine.jsonl"
    texts = ["my card has not arrived", "where is my money", "i lost my phone"]
    rows.write_text("".join(json.dumps({"text": text, "label": labels[0]}) + "\n" for text in texts))
    found = verify(bundle, data=str(rows))
    assert (found.rows, found.labelled, found.proofs[0].parity.rows) == (str(rows), True, 3)
    rows.write_text(json.dumps({"text": "hello", "label": "greeting"}) + "\n")
    with pytest.raises(DataError, match="label 'greeting' is none of the model's"):
        verify(bundle, data=str(rows))


def test_a_bundle_of_other_data_is_run_on_its_golden_samples(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["profile"]["data"]["train"] = "mine.jsonl"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    found = verify(bundle)
    assert (found.rows, found.labelled) == (replay.GOLDEN, False)
    assert found.proofs[0].parity.rows == 16


def test_a_value_beyond_fp16_is_a_risk(bundle: Path) -> None:
    """A file whose one norm is a hundred thousand times too large: on a device that computes in fp16 it overflows."""
    path, name = bundle / "model.tflite", "embeddings.norm.weight"
    gains = FrozenStudent.load(bundle / "frozen").floats[name]
    data = path.read_bytes()
    assert data.count(gains.tobytes()) == 1
    path.write_bytes(data.replace(gains.tobytes(), (gains * np.float32(1e5)).tobytes()))
    largest, where = executed.largest_value("tflite", path, [[1, 2, 3]])
    assert largest > executed.FP16_LARGEST
    hot = dataclasses.replace(verify(bundle_of(bundle, data), most_rows=1).proofs[0], largest_value=largest)
    assert any("reaches" in risk and "fp16 ends at 65504" in risk for risk in hot.risks)
    assert where == "SQUARED_DIFFERENCE"  # of the norm behind it


def bundle_of(bundle: Path, data: bytes) -> Path:
    """The bundle with its file as it was."""
    (bundle / "model.tflite").write_bytes(data)
    return bundle


def test_a_python_without_tensorflow_is_refused(cli: Callable[..., Any], tiny_bundle: Path, tmp_path: Path) -> None:
    for python, told in ((tmp_path / "none", "cannot be run"), (sys.executable, "has no TensorFlow")):
        done = cli("verify", tiny_bundle, "--rows", "1", EDGEDISTILL_TENSORFLOW=str(python))
        assert done.returncode == 2
        assert told in done.stderr
        assert "TensorFlow" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif("EDGEDISTILL_TENSORFLOW" not in os.environ, reason="names no Python with TensorFlow 2.17")
def test_tensorflows_own_analyzer_names_what_keeps_a_file_from_the_gpu(cli: Callable[..., Any], bundle: Path) -> None:
    python = os.environ["EDGEDISTILL_TENSORFLOW"]
    done = cli("verify", bundle, "--json", EDGEDISTILL_TENSORFLOW=python)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["formats"]["tflite"]
    assert "Not supported op EMBEDDING_LOOKUP" in found["gpu_delegate"]
    assert any("Not supported op EMBEDDING_LOOKUP" in risk for risk in found["risks"])


@pytest.mark.parametrize("name", ["TextClassifier.kt", "WordPiece.kt", "NOTICE.md"])
def test_code_and_notice_that_were_changed_and_signed_again_are_found(bundle: Path, name: str) -> None:
    """Emptied, changed in one line, or left out of the manifest and the folder."""
    whole = (bundle / name).read_text(encoding="utf-8")
    for content in ("", whole.replace(" ", "  ", 1)):
        (bundle / name).write_text(content, encoding="utf-8")
        signed(bundle, name)
        with pytest.raises(VerificationError, match=rf"{name}: is not the one that edgedistill .* writes"):
            verify(bundle, most_rows=5)
    (bundle / name).unlink()
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"][name]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match=f"has no {name}"):
        verify(bundle, most_rows=5)


def test_code_that_another_version_wrote_is_not_compared_but_names_the_model(
    cli: Callable[..., Any], bundle: Path
) -> None:
    code = bundle / "TextClassifier.kt"
    own = code.read_text(encoding="utf-8") + "// another line\n"
    code.write_text(own, encoding="utf-8")
    signed(bundle, code.name, edgedistill_version="0.0.9")
    done = cli("verify", bundle, "--rows", 5, "--json")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["not_compared"]
    assert told.startswith("written by edgedistill 0.0.9, and this is ")
    for content, wrong in (
        ("", "TextClassifier.kt: is empty"),
        (own.replace("model.tflite", "other.tflite"), "names model.tflite"),
        (own.replace("golden.json", "other.json"), "names golden.json"),
    ):
        code.write_text(content, encoding="utf-8")
        signed(bundle, code.name)
        with pytest.raises(VerificationError, match=wrong):
            verify(bundle, most_rows=5)
