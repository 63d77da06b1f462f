"""Real packages of small students, read back from their bytes, computed by the reference evaluator, and spoiled."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgedistill.coreml import Evaluator, Operation, Program
from edgedistill.coreml import load as parse
from edgedistill.data.tensors import Outputs
from edgedistill.errors import DataError, MissingDependency, StageError, VerificationError
from edgedistill.exporters import coreml
from edgedistill.exporters.coreml import convert, operators, proof
from edgedistill.exporters.coreml.card import card_of
from edgedistill.exporters.coreml.contents import half
from edgedistill.exporters.coreml.convert import Converter, toolkit
from edgedistill.exporters.coreml.network import network
from edgedistill.quant.fake import prepare
from edgedistill.quant.frozen import FrozenStudent, freeze
from edgedistill.specs import Spec
from edgedistill.specs.quant import PerChannel, PerGroup, QuantScheme, WeightGrid
from edgedistill.students import Port, Signature, StoredTensor, bert
from edgedistill.students._points import Point

MID = bert.Config(layers=1, width=64, heads=2, ffn=96, vocabulary=300, max_length=24, classes=9)
BUCKETS = (8, 16, 24)
SNIPPETS = Path(__file__).parents[2] / "edgedistill" / "pipeline" / "snippets" / "coreml"


def grid(bits: Any, *, groups: bool = False) -> WeightGrid:
    return WeightGrid(bits=bits, granularity=PerGroup() if groups else PerChannel())


SCHEMES = {
    "int8 per channel": QuantScheme(),
    "int4 per channel": QuantScheme(weights=grid(4), embeddings=grid(4), head=grid(4), activations="float"),
    "groups": QuantScheme(weights=grid(4, groups=True), embeddings=grid(8, groups=True), head=grid(8, groups=True)),
    "static": QuantScheme(head=grid(4), activations="static_int8"),
}


def student(family: str, config: Any, scheme: QuantScheme) -> FrozenStudent:
    """A student with random weights, of which no bias is zero and no gain is one."""
    about = importlib.import_module(f"edgedistill.students.{family}")
    torch.manual_seed(0)
    model = importlib.import_module(f"edgedistill.students.{family}.module").build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    if scheme.activations == "static_int8":
        prepare(model, scheme, about.tensors(config)).train()
        random, (signature, *_) = np.random.default_rng(1), about.signatures(config, [8])
        for _ in range(10):
            model(*(torch.from_numpy(value) for value in about.sample(config, signature, random).values()))
    return freeze(model.eval(), family, config, scheme, {})


def answers(frozen: FrozenStudent, path: Path, rows: int = 24, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the student and the package answer to the same random inputs, [rows, ...] each."""
    runner = coreml.load(path, **options)
    (name,) = runner.signatures
    kind: Any = coreml.COMPUTES[frozen.scheme.activations]
    module, random, found = frozen.to_module(kind), np.random.default_rng(7), []
    signatures = frozen.signatures(BUCKETS)
    for row in range(rows):
        feeds = frozen.sample(signatures[row % len(signatures)], random)
        with torch.no_grad():
            ours = module(*(torch.from_numpy(value) for value in feeds.values())).logits.numpy()
        found.append((ours.reshape(-1), runner.run(name, feeds)["logits"].reshape(-1)))
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coreml")


@pytest.fixture(scope="module", params=SCHEMES)
def exported(request: pytest.FixtureRequest, folder: Path) -> tuple[FrozenStudent, Path]:
    """A package of each scheme."""
    frozen, path = student("bert", MID, SCHEMES[request.param]), folder / f"{request.param}.mlpackage"
    coreml.export(frozen, BUCKETS, path)
    return frozen, path


class Converted:
    """What `prove` compares: a student, its fp32 twin and the program that ships."""

    def __init__(self, frozen: FrozenStudent, folder: Path) -> None:
        self.frozen, self.signatures = frozen, frozen.signatures(BUCKETS)
        converter = Converter(frozen, self.signatures)
        self.plain, self.shipped = (parse(converter.write(precision, folder)) for precision in ("fp32", "fp16"))


@pytest.fixture(scope="module", params=["int8 per channel", "static"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(student("bert", MID, SCHEMES[request.param]), tmp_path_factory.mktemp("converted"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> tuple[FrozenStudent, Path]:
    """A package that may be spoiled, and its student."""
    frozen, path = student("bert", MID, SCHEMES["int8 per channel"]), folder / "int8 per channel.mlpackage"
    if not path.exists():
        coreml.export(frozen, BUCKETS, path)
    return frozen, Path(shutil.copytree(path, tmp_path / "copy.mlpackage"))


def digest(path: Path) -> dict[str, str]:
    files = sorted(item for item in path.rglob("*") if item.is_file())
    return {str(item.relative_to(path)): hashlib.sha256(item.read_bytes()).hexdigest() for item in files}


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


def test_fp16_arithmetic_of_an_ideal_device_stays_near(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    ours, theirs = answers(frozen, path, precision="fp16")
    limit = 0.1 if frozen.scheme.activations == "static_int8" else 5e-3
    assert np.abs(ours - theirs).max() < limit * np.abs(ours).max()


def test_the_fp32_twin_is_the_student_and_the_file_is_the_twin_rounded(converted: Converted) -> None:
    frozen, random = converted.frozen, np.random.default_rng(3)
    kind: Any = coreml.COMPUTES[frozen.scheme.activations]
    module = frozen.to_module(kind).double()
    twin = Evaluator(converted.plain, "fp64")
    rounded = Evaluator(proof.rounded(converted.plain, proof.wide_constants(converted.shipped)), "fp64")
    shipped = Evaluator(converted.shipped, "fp64")
    for signature in converted.signatures * 4:
        feeds = frozen.sample(signature, random)
        with torch.no_grad():
            wanted = module(*(torch.from_numpy(value) for value in feeds.values())).logits.numpy()
        assert np.abs(twin.predict(feeds)["logits"] - wanted).max() < 1e-8
        assert np.array_equal(shipped.predict(feeds)["logits"], rounded.predict(feeds)["logits"])


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Two of their own: torch's tracer names values after Python variables, and pytest's shape checks add some."""
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


@pytest.fixture(scope="module")
def decoder(folder: Path) -> tuple[FrozenStudent, Path]:
    """A language model whose head is its embedding."""
    from edgedistill.students import llama

    frozen = student("llama", llama.TINY, QuantScheme(weights=grid(4, groups=True), activations="float"))
    coreml.export(frozen, [12], folder / "decoder.mlpackage")
    return frozen, folder / "decoder.mlpackage"


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


# ------------------------------------------------------------------------------------------------- faults in the file


def blob_of(path: Path) -> Path:
    return path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def test_a_flipped_code_is_found(exported: tuple[FrozenStudent, Path], tmp_path: Path) -> None:
    frozen, path = exported
    path = Path(shutil.copytree(path, tmp_path / "copy.mlpackage"))
    program, data = parse(path), bytearray(blob_of(path).read_bytes())
    operations = {operation.name: operation for operation in program.main.operations}
    for name, item in card_of(program).weights.items():
        inputs = operations[item.operation].inputs
        (constant,) = inputs.get("quantized_data") or inputs["data"]
        assert not isinstance(constant, str)
        if constant.record is None:  # a few numbers, written in the program
            continue
        data[constant.record.offset + 5] ^= 1
        blob_of(path).write_bytes(data)
        with pytest.raises(VerificationError, match=rf"1 of \d+ codes of {name}"):
            coreml.verify(frozen, path)
        data[constant.record.offset + 5] ^= 1


def test_a_scale_off_by_one_ulp_and_a_wrong_bias_are_found(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    for name, tensor in frozen.quantized.items():
        scales = tensor.scales.copy()
        scales.flat[2] = np.nextafter(np.float16(scales.flat[2]), np.float16(1)).astype(np.float32)
        wrong = dataclasses.replace(frozen, quantized=frozen.quantized | {name: tensor._replace(scales=scales)})
        with pytest.raises(VerificationError, match=rf"1 of {scales.size} scales of {name}"):
            coreml.verify(wrong, path)
    for name, values in frozen.floats.items():
        other = values.copy()
        other.flat[-1] += 0.01
        with pytest.raises(VerificationError, match=f"{name} is not in the file"):
            coreml.verify(dataclasses.replace(frozen, floats=frozen.floats | {name: other}), path)


def test_a_wrong_grid_is_found(folder: Path) -> None:
    frozen, path = student("bert", MID, SCHEMES["static"]), folder / "static.mlpackage"
    if not path.exists():
        coreml.export(frozen, BUCKETS, path)
    for side in (0, 1):
        pair = list(frozen.ranges["layers.0.down"])
        for change in ({"zero_point": pair[side].zero_point - 1}, {"scale": pair[side].scale * 2}):
            pair[side] = frozen.ranges["layers.0.down"][side]._replace(**change)
            wrong = dataclasses.replace(frozen, ranges=frozen.ranges | {"layers.0.down": (pair[0], pair[1])})
            with pytest.raises(VerificationError, match=r"grid of layers\.0\.down|not in the file"):
                coreml.verify(wrong, path)


def test_swapped_and_transposed_weights_are_found(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    a, b = "layers.0.query.weight", "layers.0.key.weight"
    swapped = frozen.quantized | {a: frozen.quantized[b], b: frozen.quantized[a]}
    turned = frozen.quantized | {a: frozen.quantized[a]._replace(codes=frozen.quantized[a].codes.T.copy())}
    for wrong in (swapped, turned):
        with pytest.raises(VerificationError, match=r"codes of layers\.0\.(query|key)"):
            coreml.verify(dataclasses.replace(frozen, quantized=wrong), path)


def test_damaged_and_foreign_packages_are_refused(copied: tuple[FrozenStudent, Path], tmp_path: Path) -> None:
    frozen, path = copied
    model, blob, manifest = path / "Data/com.apple.CoreML/model.mlmodel", blob_of(path), path / "Manifest.json"
    whole = {item: item.read_bytes() for item in (model, blob, manifest)}
    spoiled: list[tuple[Path, bytes]] = [(item, data[: len(data) // 2]) for item, data in whole.items()]
    spoiled += [(item, b"") for item in whole] + [(blob, b"\0" * len(whole[blob])), (model, b"\xff" * 500)]
    spoiled += [(model, whole[model].replace(b"edgedistill.card", b"edgedistill.care"))]
    for item, data in spoiled:
        item.write_bytes(data)
        with pytest.raises(VerificationError):
            coreml.verify(frozen, path)
        if item is not blob:  # its numbers are only read when they are asked for
            with pytest.raises(StageError, match=r"cannot load .*copy\.mlpackage"):
                coreml.load(path)
        item.write_bytes(whole[item])
    coreml.verify(frozen, path)
    for other in (tmp_path / "nothing", blob):
        with pytest.raises(VerificationError):
            coreml.read_back(other)


# -------------------------------------------------------------------------------- faults in what the program computes


def changed(program: Program, kind: str, change: Callable[[Operation], Operation]) -> Program:
    """The program with the first operation of `kind` changed."""
    done = False

    def once(operation: Operation) -> Operation:
        nonlocal done
        if done or operation.kind != kind:
            return operation
        done = True
        return change(operation)

    operations = tuple(once(operation) for operation in program.main.operations)
    assert done, kind
    function = dataclasses.replace(program.main, operations=operations)
    return dataclasses.replace(program, functions={program.default: function})


def bound_to(**names: str) -> Callable[[Operation], Operation]:
    return lambda operation: dataclasses.replace(
        operation, inputs={**operation.inputs, **{key: (name,) for key, name in names.items()}}
    )


def without(argument: str) -> Callable[[Operation], Operation]:
    return lambda operation: dataclasses.replace(
        operation, inputs={key: value for key, value in operation.inputs.items() if key != argument}
    )


def argument_of(program: Program, layer: int, name: str) -> str:
    linears = [operation for operation in program.main.operations if operation.kind == "linear"]
    (found,) = linears[layer].inputs[name]
    assert isinstance(found, str)
    return found


FAULTS: dict[str, Callable[[Program], Program]] = {
    "two layers swapped": lambda p: changed(p, "linear", bound_to(weight=argument_of(p, 1, "weight"))),
    "two biases swapped": lambda p: changed(p, "linear", bound_to(bias=argument_of(p, 1, "bias"))),
    "a dropped bias": lambda p: changed(p, "linear", without("bias")),
    "a dropped gain": lambda p: changed(p, "layer_norm", without("gamma")),
    "another epsilon": lambda p: changed(p, "layer_norm", without("epsilon")),
    "a ReLU": lambda p: changed(
        p, "gelu", lambda op: dataclasses.replace(op, kind="relu", inputs={"x": op.inputs["x"]})
    ),
    "a mask forgotten": lambda p: changed(
        p, "softmax", lambda op: dataclasses.replace(op, inputs={**op.inputs, "x": sum_without_mask(p, op)})
    ),
}


def sum_without_mask(program: Program, softmax: Operation) -> tuple[Any, ...]:
    (add,) = (operation for operation in program.main.operations if operation.name == softmax.inputs["x"][0])
    return add.inputs["x"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_program_that_computes_something_else_is_found(converted: Converted, fault: str) -> None:
    """In either conversion, the one that is compared with the student or the one that ships."""
    frozen, signatures = converted.frozen, converted.signatures
    for plain, shipped, step in (
        (FAULTS[fault](converted.plain), converted.shipped, "the graph"),
        (converted.plain, FAULTS[fault](converted.shipped), "the fp16 program"),
    ):
        with pytest.raises(VerificationError, match=step):
            proof.prove(frozen, signatures, plain, shipped)


def test_the_proof_passes_what_was_converted(converted: Converted) -> None:
    proof.prove(converted.frozen, converted.signatures, converted.plain, converted.shipped)


def spoiling(change: Callable[[nn.Module], None]) -> Callable[..., nn.Module]:
    def spoiled(frozen: FrozenStudent, **options: Any) -> nn.Module:
        model = network(frozen, **options)
        with torch.no_grad():
            change(model)
        return model

    return spoiled


def _transposed(model: nn.Module) -> None:
    weight = model.get_parameter("layers.0.query.weight")
    weight.copy_(weight.T.clone())


def _without_bias(model: nn.Module) -> None:
    model.get_parameter("layers.0.up.bias").zero_()


def _overflowing(model: nn.Module) -> None:
    """The same answers, through values that fp16 cannot hold."""
    model.get_submodule("layers.0.ffn_norm").register_forward_hook(lambda *call: call[2] * 3e4 / 3e4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_transposed, r"codes of layers\.0\.query\.weight"),
        (_without_bias, r"layers\.0\.up\.bias is not in the file"),
        (_overflowing, r"fp16 arithmetic .* leave the range of fp16, first in mul"),
    ],
)
def test_a_conversion_that_changes_the_student_is_refused(
    change: Callable[[nn.Module], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "network", spoiling(change))
    with pytest.raises(VerificationError, match=message):
        coreml.export(student("bert", bert.TINY, QuantScheme()), [8], tmp_path / "no.mlpackage")
    assert not list(tmp_path.iterdir())


def test_floats_where_integers_were_promised_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def announce(model: nn.Module, frozen: FrozenStudent) -> None:
        rest = {name: item for name, item in frozen.quantized.items() if "down" not in name}
        told(model, dataclasses.replace(frozen, quantized=rest))

    told = convert.announce
    monkeypatch.setattr(convert, "announce", announce)
    with pytest.raises(StageError, match=r"left layers\.0\.down\.weight .* float"):
        coreml.export(student("bert", bert.TINY, QuantScheme()), [8], tmp_path / "no.mlpackage")


def test_a_tied_weight_is_stored_once(
    decoder: tuple[FrozenStudent, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, path = decoder
    sizes = [op.outputs[0].type for op in parse(path).main.operations if op.kind[:5] == "const"]
    assert sum(kind is not None and kind.shape == (96, 32) for kind in sizes) == 1

    def untied(model: nn.Module) -> None:
        head = model.get_submodule("head")
        head.weight = nn.Parameter(head.get_parameter("weight").clone())

    monkeypatch.setattr(convert, "network", spoiling(untied))
    with pytest.raises(VerificationError, match=r"embedding\.weight a second time, as floats"):
        coreml.export(frozen, [8], tmp_path / "twice.mlpackage")


# ---------------------------------------------------------------------------------------------- faults of coremltools


class Width(Spec):
    """Config of the toy family."""

    width: int = 32


class Toy(nn.Module):
    """Two points with a reshape between them, and a reciprocal."""

    def __init__(self, config: Width) -> None:
        super().__init__()
        self.first, self.second = Point(), Point()
        self.head = nn.Linear(config.width, 3)

    def forward(self, pixels: Tensor) -> Outputs:
        x = self.second(self.first(pixels).reshape(1, -1))
        out = self.head(x * (1.0 / torch.arange(1.0, 1.0 + x.shape[1]).sqrt()))
        return Outputs(out, out)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Width:
    """A family of its own, `toy`, whose inputs are [1, 2, width / 2]."""
    about: Any = ModuleType("edgedistill.students.toy")
    about.Config, about.__path__ = Width, []
    about.tensors = lambda config: [
        StoredTensor("head.weight", (3, config.width), "head"),
        StoredTensor("head.bias", (3,), "float"),
    ]
    about.signatures = lambda config, buckets: (
        Signature("toy", (Port("pixels", (1, 2, config.width // 2), "float32"),), (Port("logits", (1, 3), "float32"),)),
    )
    about.sample = lambda config, signature, random: {
        "pixels": random.normal(size=signature.inputs[0].shape).astype(np.float32)
    }
    module: Any = ModuleType("edgedistill.students.toy.module")
    module.build = Toy
    monkeypatch.setitem(sys.modules, "edgedistill.students.toy", about)
    monkeypatch.setitem(sys.modules, "edgedistill.students.toy.module", module)
    return Width()


def static_toy(config: Width) -> FrozenStudent:
    frozen = student("toy", config, QuantScheme(activations="static_int8"))
    points = {
        "first": frozen.points["first"],
        "second": frozen.points["first"]._replace(scale=2 * frozen.points["first"].scale),
    }
    return dataclasses.replace(frozen, points=points)


def test_the_miscompiled_reshape_is_kept_out_and_would_be_found(
    toy: Width, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """coremltools 9.0 moves a reshape onto the integers although the grids before and after it differ."""
    frozen = static_toy(toy)
    coreml.export(frozen, [1], tmp_path / "right.mlpackage")
    ours, theirs = answers(frozen, tmp_path / "right.mlpackage")
    assert np.abs(ours - theirs).max() < 0.1 * np.abs(ours).max()

    monkeypatch.setattr(convert, "REMOVED_PASSES", ())
    (tmp_path / "raw").mkdir()
    converter = Converter(frozen, frozen.signatures([1]))
    plain, shipped = (parse(converter.write(precision, tmp_path / "raw")) for precision in ("fp32", "fp16"))
    student_, twin, random = frozen.to_module().double(), Evaluator(plain, "fp64"), np.random.default_rng(0)
    errors, largest = [], 0.0
    for _ in range(10):
        feeds = frozen.sample(converter.signature, random)
        with torch.no_grad():
            wanted = student_(torch.from_numpy(feeds["pixels"]).double()).logits.numpy()
        errors.append(np.abs(twin.predict(feeds)["logits"] - wanted).max())
        largest = max(largest, np.abs(wanted).max())
    assert np.median(errors) > 0.1 * largest
    with pytest.raises(VerificationError, match="the graph answers"):
        proof.prove(frozen, frozen.signatures([1]), plain, shipped)
    with pytest.raises(
        StageError, match="first_quantize_cast_fp16 is no quantize operation whose codes are dequantized"
    ):
        coreml.export(frozen, [1], tmp_path / "wrong.mlpackage")
    assert not (tmp_path / "wrong.mlpackage").exists()


def test_the_inexact_reciprocal_is_replaced_and_would_be_found(
    toy: Width, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """coremltools 9.0 computes 1 / x as 1 / (x + 1e-4)."""
    frozen = student("toy", toy, QuantScheme(activations="float"))
    coreml.export(frozen, [1], tmp_path / "right.mlpackage")
    theirs = importlib.import_module("coremltools.converters.mil.frontend.torch.ops").reciprocal
    monkeypatch.setattr(operators, "reciprocal", theirs)
    with pytest.raises(VerificationError, match="the graph answers"):
        coreml.export(frozen, [1], tmp_path / "wrong.mlpackage")


# ------------------------------------------------------------------------------------------------------- other refusals


@pytest.mark.parametrize("buckets", [[], [0], [-4, 8], [8, 17]])
def test_impossible_buckets_are_refused_before_anything_slow(buckets: list[int], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="max_length = 16"):
        coreml.export(student("bert", bert.TINY, QuantScheme()), buckets, tmp_path / "no.mlpackage")
    assert not list(tmp_path.iterdir())


def test_without_coremltools_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingDependency, match=r"pip install 'edgedistill\[coreml\]'"):
        coreml.export(student("bert", bert.TINY, QuantScheme()), [8], tmp_path / "no.mlpackage")


def test_rounding_to_fp16_keeps_small_numbers_of_small_tensors() -> None:
    small = np.array([1e-12, -1e-12, 0.0, 1.0, 1e9], np.float32)
    assert half(small).tolist() == [2.0**-24, -(2.0**-24), 0.0, 1.0, np.inf]
    assert half(np.full(400, 1e-12, np.float32)).max() == 0


@pytest.mark.parametrize("buckets", [(8,), (5, 8)])
def test_the_macs_script_replays_golden_samples(
    buckets: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the evaluator in place of Apple's runtime, which is all that this machine has."""
    frozen = student("bert", bert.TINY, QuantScheme(activations="float"))
    coreml.export(frozen, buckets, tmp_path / "model.mlpackage")
    runner = coreml.load(tmp_path / "model.mlpackage")
    (signature,) = runner.signatures.values()

    class Model:
        def __init__(self, path: str) -> None:
            assert path == str(tmp_path / "model.mlpackage")

        def predict(self, feeds: dict[str, Any]) -> dict[str, Any]:
            return runner.run(signature.name, feeds)

    fake: Any = ModuleType("coremltools")
    fake.models = ModuleType("coremltools.models")
    fake.models.MLModel = Model
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    spec = importlib.util.spec_from_file_location("replay_golden", SNIPPETS / "replay_golden.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    ids = [2, 7, 9, 3]
    padded = ids + [0] * (0 if signature.name == "any" else 8 - len(ids))
    mask = [[1] * len(ids) + [0] * (len(padded) - len(ids))]
    feeds = {"input_ids": np.array([padded], np.int32), "attention_mask": np.array(mask, np.int32)}
    logits = runner.run(signature.name, feeds)["logits"][0].tolist()
    golden = [{"id": "a", "input_ids": ids, "answers": {"coreml": {"signature": signature.name, "logits": logits}}}]
    (tmp_path / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    assert script.main(tmp_path) == 0
    assert "samples that do not agree: 0" in capsys.readouterr().out
    logits[0] += 0.5
    (tmp_path / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    assert script.main(tmp_path) == 1
    assert "a: a logit differs by 0.5" in capsys.readouterr().out


def test_what_was_not_run_on_apple_hardware_says_so() -> None:
    for name in ("TextClassifier.swift", "replay_golden.py"):
        assert "NOT RUN ON APPLE HARDWARE" in (SNIPPETS / name).read_text(encoding="utf-8")[:500]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_student_of_real_size(scheme: str, tmp_path: Path) -> None:
    config = bert.Config(layers=6, width=384, heads=12, ffn=1536, vocabulary=30522, max_length=128, classes=77)
    frozen, path = student("bert", config, SCHEMES[scheme]), tmp_path / "real.mlpackage"
    coreml.export(frozen, (16, 32, 64, 128), path)
    coreml.verify(frozen, path)
