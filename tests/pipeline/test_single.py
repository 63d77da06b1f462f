"""`edgedistill verify FILE --student FOLDER`: a file of no bundle, held against what it should be."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.catalog import load_plugin
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.reading import names, parse, uses
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.specs import QuantScheme
from edgedistill.students import bert, part

Cli = Callable[..., Any]


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


@pytest.mark.parametrize("suffix", [".tflite", ".gguf", ".onnx", ".litertlm"])
def test_a_damaged_or_foreign_file_is_wrong_input(cli: Cli, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(np.random.default_rng(0).bytes(4000))
    done = cli("verify", path, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "ForeignFile"
    assert str(path) in done.stderr


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
