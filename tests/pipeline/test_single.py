"""`edgedistill verify FILE --student FOLDER`: a file of no bundle, held against what it should be."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.catalog import load_plugin
from edgedistill.errors import ForeignFile, VerificationError
from edgedistill.exporters import gguf
from edgedistill.exporters.gguf.reading import describe
from edgedistill.exporters.litertlm.parsing import parse as parse_bundle
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.reading import names, parse, uses
from edgedistill.pipeline.single import verify_file
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.specs import QuantScheme
from edgedistill.students import bert, part

Cli = Callable[..., Any]
RUNNERS = Path(__file__).parents[1] / "runners"


@pytest.fixture
def file(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_bundle / "model.tflite", tmp_path / "model.tflite"))


def test_a_file_alone_is_held_against_its_student(cli: Cli, tiny_bundle: Path, file: Path) -> None:
    done = cli("verify", file, "--student", tiny_bundle / "frozen", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["verified"], told["format"]) == (True, "tflite")
    assert told["tensors"] == len(FrozenStudent.load(tiny_bundle / "frozen").quantized)
    assert told["entry_points"] == ["length_8", "length_16"]
    assert told["runs"] == 4 * len(told["entry_points"])
    assert told["operators"]["FULLY_CONNECTED"] == 14
    assert "difference 0" in cli("verify", file, "--student", tiny_bundle / "frozen").stdout


def test_a_file_of_another_student_and_one_that_computes_something_else_are_told(
    cli: Cli, tiny_bundle: Path, file: Path, tmp_path: Path
) -> None:
    student = FrozenStudent.load(tiny_bundle / "frozen")
    name = "layers.0.up.weight"
    weight = student.quantized[name]
    codes = weight.codes.copy()
    codes[0, 0] ^= 1
    student = dataclasses.replace(student, quantized={**student.quantized, name: weight._replace(codes=codes)})
    (tmp_path / "other").mkdir()
    student.save(tmp_path / "other")
    done = cli("verify", file, "--student", tmp_path / "other")
    assert done.returncode == 1
    assert f"1 of {codes.size} codes of {name} are not the student's" in " ".join(done.stderr.split())
    schema, model = parse(file)
    stored = names(model, file)
    for subgraph in model.subgraphs:
        found = {use.name: use.operator for use in uses(schema, model, subgraph, stored)}
        first, second = found["layers.0.query.weight"], found["layers.0.key.weight"]
        kept = list(first.inputs)
        first.inputs = np.asarray([first.inputs[0], *second.inputs[1:]], np.int32)
        second.inputs = np.asarray([second.inputs[0], *kept[1:]], np.int32)
    file.write_bytes(Packer().pack(model))
    done = cli("verify", file, "--student", tiny_bundle / "frozen", "--json")
    assert done.returncode == 1
    assert "length_8 does not compute the student" in json.loads(done.stdout)["error"]["message"]
    assert "first differs at the input of layers.0.output" in " ".join(done.stderr.split())


def _none(model: Any) -> None:
    model.signatureDefs = []


def _renamed(model: Any) -> None:
    model.signatureDefs[0].signatureKey = b"length_9"


def _swapped(model: Any) -> None:
    one, other = model.signatureDefs
    one.signatureKey, other.signatureKey = other.signatureKey, one.signatureKey


def _other_output(model: Any) -> None:
    model.signatureDefs[0].outputs[0].name = b"logitz"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_none, "entry points are not the student's: length buckets [] must be"),
        (_renamed, "entry point 'length_8' is not the student's"),
        (_swapped, "entry point 'length_16' is not the student's"),
        (_other_output, "-> logitz float32[1, 5], the student's"),
    ],
)
def test_entry_points_that_an_app_would_not_find_are_told(
    tiny_bundle: Path, file: Path, change: Callable[[Any], None], told: str
) -> None:
    """Every number is there, and every graph computes the student; without an entry point nothing would be run."""
    _, model = parse(file)
    change(model)
    file.write_bytes(Packer().pack(model))
    with pytest.raises(VerificationError, match=re.escape(told)):
        verify_file(file, tiny_bundle / "frozen")


def test_a_runtime_version_that_is_none_is_not_repeated(tiny_bundle: Path, file: Path) -> None:
    """It would be drawn on a terminal."""
    _, model = parse(file)
    (entry,) = [entry for entry in model.metadata if entry.name == b"min_runtime_version"]
    model.buffers[entry.buffer].data = np.frombuffer(b"2\x1b[2J".ljust(16, b"\0"), np.uint8)
    assert verify_file(file, tiny_bundle / "frozen").audit.runtime_min.startswith("TensorFlow Lite 2.")
    file.write_bytes(Packer().pack(model))
    assert verify_file(file, tiny_bundle / "frozen").audit.runtime_min == "TensorFlow Lite unknown"


@pytest.mark.parametrize("suffix", [".tflite", ".gguf", ".onnx", ".litertlm"])
def test_a_damaged_or_foreign_file_is_wrong_input(cli: Cli, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(np.random.default_rng(0).bytes(4000))
    done = cli("verify", path, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "ForeignFile"
    assert str(path) in done.stderr


@pytest.mark.parametrize("suffix", [".tflite", ".gguf", ".onnx", ".litertlm"])
def test_a_huge_file_of_something_else_is_not_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"huge{suffix}"
    with path.open("wb") as file:
        file.truncate(2**38)  # of holes: it takes no disk
    tracemalloc.start()
    with pytest.raises(ForeignFile):
        verify_file(path, None)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_what_cannot_be_asked_of_a_file_is_refused(cli: Cli, tiny_bundle: Path, file: Path, tmp_path: Path) -> None:
    student = ("--student", tiny_bundle / "frozen")
    (tmp_path / "a.txt").write_text("text")
    for arguments, told in (
        ((file,), "is a file alone. Say what it should be: --student FOLDER"),
        ((file, "--student", tmp_path), "not a frozen student"),
        ((file, *student, "--rows", 3), "are for a BUNDLE"),
        ((tiny_bundle, *student), "--student goes with a FILE"),
        ((tmp_path / "a.txt",), "a file of no format known here; those are .tflite, .onnx, .gguf, .litertlm"),
        ((tmp_path / "none.tflite",), "no such folder"),
    ):
        done = cli("verify", *arguments)
        assert done.returncode == 2, arguments
        assert told in " ".join(done.stderr.split())


@pytest.fixture
def decoder(tmp_path: Path) -> tuple[Path, Path]:
    """A decoder's .tflite, and the folder of its student, which the .gguf of the same one has."""
    described = describe(RUNNERS / "tiny_decoder.gguf")
    told, stored = described.parsed.metadata, described.parsed.tensors
    places = {name: stored[place] for name, place in described.layout.names.items() if name not in described.grids}
    floats = {name: np.frombuffer(one.data.tobytes(), "<f4").reshape(one.shape) for name, one in places.items()}
    config, scheme = (json.loads(str(told[f"edgedistill.{key}"])) for key in ("config", "scheme"))
    quantized = gguf.read_back(RUNNERS / "tiny_decoder.gguf")
    student = FrozenStudent("llama", config, QuantScheme(**scheme), quantized, floats, {}, {}, {})
    (tmp_path / "decoder").mkdir()
    student.save(tmp_path / "decoder")
    bundle, path = RUNNERS / "tiny_decoder.litertlm", tmp_path / "decoder.tflite"
    begin, end = parse_bundle(bundle).model
    path.write_bytes(bundle.read_bytes()[begin:end])
    return path, tmp_path / "decoder"


def test_what_reads_a_prompt_in_pieces_is_compared_too(decoder: tuple[Path, Path]) -> None:
    """A whole text goes through `decode` alone, token by token."""
    path, student = decoder
    assert set(verify_file(path, student).entry_points) == {"any", "decode", "prefill_8"}
    schema, model = parse(path)
    stored = names(model, path)
    (prefill,) = [entry for entry in model.signatureDefs if entry.signatureKey == b"prefill_8"]
    found = {use.name: use.operator for use in uses(schema, model, model.subgraphs[prefill.subgraphIndex], stored)}
    first, second = found["layers.0.gate.weight"], found["layers.0.up.weight"]
    kept = list(first.inputs)
    first.inputs = np.asarray([first.inputs[0], *second.inputs[1:]], np.int32)
    second.inputs = np.asarray([second.inputs[0], *kept[1:]], np.int32)
    path.write_bytes(Packer().pack(model))
    with pytest.raises(VerificationError, match=r"prefill_8 does not compute the student .* layers\.0\."):
        verify_file(path, student)


@pytest.mark.slow  # an export of each format
@pytest.mark.parametrize("format_name", bert.FORMATS)
def test_files_of_every_format_are_held_against_their_student(cli: Cli, tmp_path: Path, format_name: str) -> None:
    config = bert.TINY.model_copy(update={"width": 32, "ffn": 64})
    frozen = freeze(part("bert", "module").build(config), "bert", config, QuantScheme(activations="float"), {})
    exporter = load_plugin("exporters", format_name)
    path = tmp_path / f"model{exporter.SUFFIX}"
    exporter.export(frozen, (8, 16), path)
    (tmp_path / "frozen").mkdir()
    frozen.save(tmp_path / "frozen")
    done = cli("verify", path, "--student", tmp_path / "frozen")
    assert done.returncode == 0, done.stderr
