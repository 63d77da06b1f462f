"""Faults in the file, in what its program computes, and in the conversion: each is found."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from coreml_students import BUCKETS, MID, SCHEMES, Converted, blob_of, student

from edgedistill.coreml import Constant, Operation, Program
from edgedistill.coreml import load as parse
from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters import coreml
from edgedistill.exporters.coreml import proof
from edgedistill.exporters.coreml.card import card_of
from edgedistill.exporters.coreml.contents import Contents, half
from edgedistill.quant.frozen import FrozenStudent


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
    "a dropped gain": lambda p: (
        passed_on(p, reader_of(p, "norm_weight")) if is_static(p) else changed(p, "layer_norm", without("gamma"))
    ),
    "another epsilon or root": lambda p: (
        passed_on(p, first_of(p, "sqrt")) if is_static(p) else changed(p, "layer_norm", without("epsilon"))
    ),
    "a ReLU": lambda p: changed(
        p, "gelu", lambda op: dataclasses.replace(op, kind="relu", inputs={"x": op.inputs["x"]})
    ),
    "a mask forgotten": lambda p: passed_on(p, source_of(p, first_of(p, "reduce_max" if is_static(p) else "softmax"))),
}


def is_static(program: Program) -> bool:
    """Whether layer norms and attention are spelled out."""
    return any(operation.kind == "sqrt" for operation in program.main.operations)


def first_of(program: Program, kind: str) -> Operation:
    return next(operation for operation in program.main.operations if operation.kind == kind)


def source_of(program: Program, reader: Operation) -> Operation:
    return next(operation for operation in program.main.operations if operation.name == reader.inputs["x"][0])


def reader_of(program: Program, constant: str, kind: str = "mul", side: str = "y") -> Operation:
    """The first operation of a kind of which an input is a constant whose name has this in it."""
    found = (operation for operation in program.main.operations if operation.kind == kind)
    return next(item for item in found if constant in str(item.inputs[side][0]))


def passed_on(program: Program, wrong: Operation) -> Program:
    """The program without one operation: its first input comes out of it."""

    def change(operation: Operation) -> Operation:
        if operation.name != wrong.name:
            return operation
        return dataclasses.replace(operation, kind="identity", inputs={"x": operation.inputs["x"]})

    function = dataclasses.replace(program.main, operations=tuple(map(change, program.main.operations)))
    return dataclasses.replace(program, functions={program.default: function})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_program_that_computes_something_else_is_found(converted: Converted, fault: str) -> None:
    with pytest.raises(VerificationError, match="the graph"):
        proof.prove(converted.frozen, converted.signatures, FAULTS[fault](converted.shipped), converted.floats)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(student("bert", MID, SCHEMES["static"]), tmp_path_factory.mktemp("single"), "float32")


FAULTS_OF_FLOAT32: dict[str, Callable[[Program], Program]] = {
    "codes not divided": lambda p: passed_on(p, source_of(p, first_of(p, "matmul"))),
    "a weight not divided": lambda p: passed_on(p, reader_of(p, "query_weight", "real_div", "x")),
    "a bias forgotten": lambda p: passed_on(p, reader_of(p, "up_bias", "add")),
    "another factor": lambda p: passed_on(p, reader_of(p, "up_factors")),
    "a root forgotten": lambda p: passed_on(p, first_of(p, "sqrt")),
    "a mask forgotten": lambda p: passed_on(p, source_of(p, first_of(p, "reduce_max"))),
}


@pytest.mark.parametrize("fault", FAULTS_OF_FLOAT32)
def test_a_program_of_float32_that_computes_something_else_is_found(single: Converted, fault: str) -> None:
    with pytest.raises(VerificationError, match="the graph"):
        proof.prove_float32(single.frozen, single.signatures, FAULTS_OF_FLOAT32[fault](single.shipped))


@pytest.mark.parametrize("kind", ["gain", "factor"])
def test_a_constant_that_is_not_rounded_to_the_nearest_is_found(converted: Converted, kind: str) -> None:
    """One number of a tensor, or one factor of the graph, by the last bit of fp16: too little to be seen in answers."""
    shape = (64,) if kind == "gain" else ()

    def nudged(operation: Operation) -> Operation:
        (value,) = operation.inputs.get("val", (None,))
        if operation.name not in names[:1] or not isinstance(value, Constant):
            return operation
        array = value.array().copy()
        array.flat[-1] = np.nextafter(array.flat[-1], np.float16(100))
        return dataclasses.replace(operation, inputs={"val": (Constant(value.type, inline=array),)})

    program = converted.shipped
    floats = Contents(program).floats()
    names = [name for name, value in floats.items() if value.shape == shape and value.array().flat[-1] not in (0, 1)]
    operations = tuple(map(nudged, program.main.operations))
    function = dataclasses.replace(program.main, operations=operations)
    spoiled = dataclasses.replace(program, functions={program.default: function})
    with pytest.raises(VerificationError, match=f"the fp16 program holds other numbers in {names[0]}"):
        proof.prove(converted.frozen, converted.signatures, spoiled, converted.floats)


def test_float32_constants_that_are_not_the_students_are_found(converted: Converted) -> None:
    """Too little for fp16 to show it, and the graph with them put back still tells; what stays float32 is compared."""
    floats = {name: np.asarray(half(value), np.float32) for name, value in converted.floats.items()}
    whole = any(value.type.dtype == "fp32" for value in Contents(converted.shipped).floats().values())
    with pytest.raises(VerificationError, match="holds other numbers" if whole else "the graph"):
        proof.prove(converted.frozen, converted.signatures, converted.shipped, floats)


def test_a_gain_that_is_off_by_a_millionth_is_found(converted: Converted) -> None:
    """So little that its fp16 number is the same."""
    (name, *_) = (name for name, value in converted.floats.items() if value.shape == (64,) and "norm_weight" in name)
    exact = converted.floats[name]
    moved = np.where(half(exact * np.float32(1 + 1e-6)) == half(exact), exact * np.float32(1 + 1e-6), exact)
    with pytest.raises(VerificationError, match="the graph"):
        proof.prove(converted.frozen, converted.signatures, converted.shipped, converted.floats | {name: moved})


def test_the_proof_passes_what_was_converted(converted: Converted) -> None:
    proof.prove(converted.frozen, converted.signatures, converted.shipped, converted.floats)
