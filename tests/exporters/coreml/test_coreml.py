"""Real packages of small students: read back from their bytes, and computed by the reference evaluator."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_students import BUCKETS, MID, SCHEMES, Converted, answers, digest, grid, student

from edgedistill.coreml import Evaluator
from edgedistill.coreml import load as parse
from edgedistill.errors import DataError, StageError
from edgedistill.exporters import coreml
from edgedistill.exporters.coreml import proof
from edgedistill.exporters.coreml.card import card_of
from edgedistill.exporters.coreml.contents import Contents, half
from edgedistill.exporters.coreml.convert import toolkit
from edgedistill.exporters.coreml.network import network
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import Port, Signature, bert, llama


def test_codes_and_scales_are_the_students(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    found = coreml.read_back(path)
    assert found.keys() == frozen.quantized.keys()
    for name, tensor in frozen.quantized.items():
        assert found[name].codes.dtype == np.int8
        assert np.array_equal(found[name].codes, tensor.codes), name
        assert np.array_equal(found[name].scales, tensor.scales), name
    coreml.verify(frozen, path)


def test_bits_in_the_file_are_the_schemes_and_so_is_the_system(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    program, data = parse(path), ("quantized_data", "data")
    for name, item in card_of(program).weights.items():
        (operation,) = (op for op in program.main.operations if op.name == item.operation)
        (dtype,) = {operation.inputs[key][0].type.dtype for key in data if key in operation.inputs}  # type: ignore[union-attr]
        assert dtype == f"int{frozen.grids()[name].bits}"
    only_bytes = {found.label for found in frozen.grids().values()} == {"int8 per channel"}
    assert program.specification == (8 if only_bytes else 9)
    assert coreml.audit(path).runtime_min.startswith("iOS 17" if only_bytes else "iOS 18")


def test_the_package_answers_as_the_student_up_to_fp16_constants(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    static = frozen.scheme.activations == "static_int8"
    ours, theirs = answers(frozen, path)
    assert theirs.dtype == np.float32
    assert np.median(np.abs(ours - theirs)) < (0.02 if static else coreml.PARITY) * np.abs(ours).max()
    assert np.abs(ours - theirs).max() < (0.1 if static else 2e-3) * np.abs(ours).max()
    if static:  # a value on the boundary of two codes takes the other one, after a constant was rounded to fp16
        steps = np.round(np.abs(ours - theirs) / frozen.ranges["classifier"][1].scale)
        assert np.median(steps) <= 1
        assert steps.max() <= 5
        return
    halves = {name: half(values).astype(np.float32) for name, values in frozen.floats.items()}
    rounded, theirs = answers(dataclasses.replace(frozen, floats=halves), path)
    assert np.abs(rounded - theirs).max() < 3e-4  # what is left: 1/sqrt(width) and the epsilons, rounded too


def test_a_package_of_float32_answers_as_the_student(tmp_path: Path) -> None:
    frozen, path = student("bert", MID, SCHEMES["groups"]), tmp_path / "single.mlpackage"
    coreml.export(frozen, BUCKETS, path, precision="float32")
    ours, theirs = answers(frozen, path)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(ours).max()
    coreml.verify(frozen, path)
    found = card_of(parse(path))
    assert found.precision == "float32"
    floats = Contents(parse(path)).floats()
    assert all(floats[operation].type.dtype == "fp32" for operation in found.floats.values())
    assert any("computed in fp32" in risk for risk in coreml.audit(path).risks)


def test_a_decoder_in_float32_is_refused(tmp_path: Path) -> None:
    frozen = student("llama", llama.TINY, QuantScheme(activations="float"))
    with pytest.raises(StageError, match="states in fp16 only"):
        coreml.export(frozen, (8,), tmp_path / "no.mlpackage", precision="float32")


def test_fp16_arithmetic_of_an_ideal_device_stays_near(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    ours, theirs = answers(frozen, path, precision="fp16")
    limit = 0.1 if frozen.scheme.activations == "static_int8" else 5e-3
    assert np.abs(ours - theirs).max() < limit * np.abs(ours).max()


def test_with_its_float32_constants_put_back_the_file_is_the_student(converted: Converted) -> None:
    """In float64, grids and all: no code is another one."""
    frozen, random = converted.frozen, np.random.default_rng(3)
    feeds = [frozen.sample(signature, random) for signature in converted.signatures * 4]
    wanted = proof.answers(network(frozen), feeds)
    twin = Evaluator(proof.unrounded(converted.shipped, converted.floats), "fp64")
    shipped = Evaluator(converted.shipped, "fp64")
    largest = max(np.abs(item).max() for item in wanted)
    assert max(np.abs(twin.predict(a)["logits"] - b).max() for a, b in zip(feeds, wanted, strict=True)) < 1e-9 * largest
    assert min(np.abs(shipped.predict(a)["logits"] - b).max() for a, b in zip(feeds, wanted, strict=True)) > 1e-6


@pytest.mark.slow  # the contract does it for one scheme of each format
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Neither is this one; `test_coreml_names.py` compares with what this one writes."""
    student("bert", bert.TINY, SCHEMES["static"]).save(tmp_path)
    code = (
        "import sys; from pathlib import Path; from edgedistill.exporters import coreml\n"
        "from edgedistill.quant.frozen import FrozenStudent\n"
        "coreml.export(FrozenStudent.load(Path(sys.argv[1])), [5, 16], Path(sys.argv[2]))"
    )
    found = []
    for seed in ("0", "123"):
        out = tmp_path / f"{seed}.mlpackage"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(out)],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout + done.stderr == ""
        found.append(digest(out))
    assert found[0] == found[1]
    assert not list(tmp_path.glob("*.partial"))


def test_coremltools_itself_finds_the_package_valid(exported: tuple[FrozenStudent, Path]) -> None:
    tools = toolkit()
    from coremltools.libmodelpackage import ModelPackage

    frozen, path = exported
    assert ModelPackage.isValid(str(path))
    model = tools.models.MLModel(str(path), skip_model_load=True)
    assert json.loads(model.user_defined_metadata["edgedistill.card"])["family"] == "bert"
    assert model.author == "edgedistill"
    assert not any("date" in key for key in model.user_defined_metadata)
    assert frozen.scheme.label in model.short_description


def test_the_entry_point_takes_and_gives_the_documented_tensors(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    (signature,) = coreml.load(path).signatures.values()
    ids, mask, logits = (1, -1), (1, -1), (1, frozen.config["classes"])
    assert signature == Signature(
        "any",
        (Port("input_ids", ids, "int32"), Port("attention_mask", mask, "int32")),
        (Port("logits", logits, "float32"),),
    )
    function = parse(path).main
    assert "padding" in function.features["attention_mask"].description
    assert "float32 [1, 9]" in function.results["logits"].description


def test_every_length_runs_and_padding_changes_nothing(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    runner = coreml.load(path)
    ids = np.random.default_rng(0).integers(0, MID.vocabulary, (1, 24)).astype(np.int32)
    for length in (1, 2, 9, 24):
        feeds = {"input_ids": ids[:, :length], "attention_mask": np.ones((1, length), np.int32)}
        alone = runner.run("any", feeds)["logits"]
        padded = {"input_ids": ids.copy(), "attention_mask": (np.arange(24)[None] < length).astype(np.int32)}
        assert np.allclose(runner.run("any", padded)["logits"], alone, atol=0.03 if frozen.ranges else 1e-5)


def test_inputs_that_do_not_fit_are_refused(copied: tuple[FrozenStudent, Path]) -> None:
    runner = coreml.load(copied[1])
    good = np.ones((1, 8), np.int32)
    for bad in (np.ones((1, 25), np.int32), np.ones((1, 0), np.int32), good.astype(np.int64), good[0], None):
        feeds = {"input_ids": good} | ({} if bad is None else {"attention_mask": bad})
        with pytest.raises(DataError, match=r"takes attention_mask as int32\[1, 1 to 24\]"):
            runner.run("any", feeds)


def test_a_single_bucket_gives_a_fixed_length(tmp_path: Path) -> None:
    frozen, path = student("bert", bert.TINY, QuantScheme(activations="float")), tmp_path / "one.mlpackage"
    coreml.export(frozen, [12], path)  # shorter than the position table, of which the first rows are stored
    (signature,) = coreml.load(path).signatures.values()
    assert (signature.name, signature.inputs[0].shape) == ("length_12", (1, 12))
    coreml.verify(frozen, path)
    assert not any("flexible" in risk for risk in coreml.audit(path).risks)
    coreml.export(frozen, [12, 16], path)  # a package that is there is replaced
    assert list(coreml.load(path).signatures) == ["any"]
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("family", "activations"),
    [("cnn", "static_int8"), ("cnn", "float"), ("vit", "static_int8"), ("vit", "float"), ("llama", "float")],
)
def test_other_families_are_exact_too(family: str, activations: Any, tmp_path: Path) -> None:
    about = importlib.import_module(f"edgedistill.students.{family}")
    frozen = student(family, about.TINY, QuantScheme(weights=grid(4), activations=activations))
    path = tmp_path / "student.mlpackage"
    coreml.export(frozen, [8, 16], path)
    found = coreml.read_back(path)
    assert all(np.array_equal(found[name].codes, tensor.codes) for name, tensor in frozen.quantized.items())
    assert card_of(parse(path)).places.keys() >= frozen.points.keys()


def test_a_decoder_reads_a_text_in_parts(decoder: tuple[FrozenStudent, Path]) -> None:
    frozen, path = decoder
    runner, ids = coreml.load(path), np.random.default_rng(2).integers(0, 96, (1, 12)).astype(np.int32)
    assert runner.signatures["any"].inputs == (Port("input_ids", (1, -1), "int32"),)
    whole = runner.run("any", {"input_ids": ids})["logits"]
    with torch.no_grad():
        wanted = frozen.to_module("float")(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(whole - wanted).max() < coreml.PARITY * np.abs(wanted).max()
    session = runner.session()
    parts = [session.read(part) for part in np.split(ids, [5, 6, 7], axis=1)]
    assert session.position == 12
    # it multiplies matrices of other shapes, and its states are fp16
    assert np.abs(np.concatenate(parts, axis=1) - whole).max() < 1e-3 * np.abs(whole).max()
    with pytest.raises(StageError, match="12 tokens and 1 more do not fit"):
        session.read(ids[:, :1])
    assert np.array_equal(runner.session().read(ids), whole)
    program = parse(path).main
    assert {state.dtype for state in program.states.values()} == {"fp16"}
    wide = {"cos", "sin", "rsqrt"}  # in fp16 angles have no digits left, and sums of squares overflow
    assert {op.outputs[0].type.dtype for op in program.operations if op.kind in wide and op.outputs[0].type} == {"fp32"}
    assert {op.outputs[0].type.dtype for op in program.operations if op.kind == "linear" and op.outputs[0].type} == {
        "fp16"
    }
    assert coreml.audit(path).runtime_min.startswith("iOS 18")


def test_an_encoder_has_no_session(copied: tuple[FrozenStudent, Path]) -> None:
    with pytest.raises(StageError, match="no states"):
        coreml.load(copied[1]).session()


def test_the_format_holds_what_it_says() -> None:
    for scheme in SCHEMES.values():
        assert scheme.misfit(coreml.HOLDS) is None
        assert scheme.activations in coreml.COMPUTES


def test_rounding_to_fp16_keeps_small_numbers_of_small_tensors() -> None:
    small = np.array([1e-12, -1e-12, 0.0, 1.0, 1e9], np.float32)
    assert half(small).tolist() == [2.0**-24, -(2.0**-24), 0.0, 1.0, np.inf]
    assert half(np.full(400, 1e-12, np.float32)).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_student_of_real_size(scheme: str, tmp_path: Path) -> None:
    config = bert.Config(layers=6, width=384, heads=12, ffn=1536, vocabulary=30522, max_length=128, classes=77)
    frozen, path = student("bert", config, SCHEMES[scheme]), tmp_path / "real.mlpackage"
    coreml.export(frozen, (16, 32, 64, 128), path)
    coreml.verify(frozen, path)
